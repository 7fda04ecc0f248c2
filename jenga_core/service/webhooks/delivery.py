"""Sends what the outbox holds, as Standard Webhooks says: signed, at least once, in order within a job.

    webhook-id          evt_...; the same in every attempt, so that the receiver can tell a repetition
    webhook-timestamp   seconds since 1970, of this attempt
    webhook-signature   v1,base64(HMAC-SHA256(secret, id.timestamp.body))

A 2xx answer is success; anything else is tried again after BACKOFF_SECONDS, and given up after the last of them. Rows
are claimed for CLAIM_SECONDS before they are sent: a sender that dies leaves them to the next one. Of one job and
endpoint only the oldest row that is still to be sent is ever claimed, so a failed delivery holds back those behind it
and no others.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from sqlalchemy import select, update
from sqlalchemy.orm import Session, aliased
from standardwebhooks import Webhook

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import WebhookDelivery, WebhookEndpoint
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from jenga_core.service.webhooks import endpoints, targets
from jenga_core.service.webhooks.targets import RefusedTarget, Target

BACKOFF_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21600.0, 43200.0)
"""Between an attempt and the next; about a day in all."""

CLAIM_SECONDS = 60.0
TIMEOUT_SECONDS = 5.0
"""To connect, to write and to read each, and for an answer's body."""

ATTEMPT_SECONDS = 15.0
"""For all of that together."""

MAX_ANSWER_BYTES = 64 * 2**10
AT_ONCE = 8
ROUND_SECONDS = 4.0
"""One round begins no new deliveries after so long: the worker that calls has other things to do."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Claimed:
    seq: int
    event_id: str
    endpoint_id: str
    url: str
    payload: Mapping[str, Any]
    attempts: int


def deliver(settings: Settings, database: Database) -> int:
    """Send what is due, for a few seconds; return how many attempts were made."""
    made, began = 0, time.monotonic()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook") as pool:
        while time.monotonic() < began + ROUND_SECONDS:
            with database.writing() as session:
                claimed = _claim(session)
            if not claimed:
                break
            made += len(claimed)
            for delivery, error in zip(claimed, pool.map(lambda each: _attempt(settings, each), claimed), strict=True):
                with database.writing() as session:
                    _settle(session, delivery, error)
    return made


def _claim(session: Session) -> list[_Claimed]:
    """Due rows that nothing older of their job and endpoint holds back; they are ours for CLAIM_SECONDS."""
    older = aliased(WebhookDelivery)
    held_back = (
        select(older.seq)
        .where(
            older.endpoint_id == WebhookDelivery.endpoint_id,
            older.job_id == WebhookDelivery.job_id,
            older.seq < WebhookDelivery.seq,
            older.next_attempt_at.is_not(None),
        )
        .exists()
    )
    due = (
        select(WebhookDelivery, WebhookEndpoint.url)
        .join(WebhookEndpoint)
        .where(WebhookDelivery.next_attempt_at <= database_now(), ~held_back)
        .order_by(WebhookDelivery.seq)
        .limit(AT_ONCE)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    )
    claimed = []
    for row, url in session.execute(due):
        row.attempts += 1
        row.next_attempt_at = database_now() + CLAIM_SECONDS
        claimed.append(_Claimed(row.seq, row.event_id, row.endpoint_id, url, row.payload, row.attempts))
    return claimed


def _settle(session: Session, delivery: _Claimed, error: str | None) -> None:
    values: dict[str, Any] = {"last_error": error, "next_attempt_at": None}
    if error is None:
        values["delivered_at"] = database_now()
    elif delivery.attempts <= len(BACKOFF_SECONDS):
        values["next_attempt_at"] = database_now() + BACKOFF_SECONDS[delivery.attempts - 1]
    else:
        log.warning(
            "webhook %s: %s given up after %d attempts", delivery.endpoint_id, delivery.event_id, delivery.attempts
        )
    ours = (WebhookDelivery.seq == delivery.seq) & (WebhookDelivery.attempts == delivery.attempts)
    session.execute(update(WebhookDelivery).where(ours).values(**values))


def _attempt(settings: Settings, delivery: _Claimed) -> str | None:
    """Send it once; None, or why it failed."""
    try:
        target = targets.resolve(delivery.url, private_allowed=settings.webhooks_to_private_addresses)
        return _send(target, delivery, endpoints.secret_of(delivery.endpoint_id, settings.pepper))
    except RefusedTarget as error:
        return error.message
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"[:500]


def _send(target: Target, delivery: _Claimed, secret: str) -> str | None:
    body, now = json.dumps(delivery.payload, separators=(",", ":")), datetime.now(UTC)
    address = f"[{target.address}]" if ":" in target.address else target.address
    default_port = target.port == (443 if target.scheme == "https" else 80)
    headers = {
        "host": target.host if default_port else f"{target.host}:{target.port}",
        "content-type": "application/json",
        "user-agent": "Jenga-Webhooks/1",
        "webhook-id": delivery.event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(delivery.event_id, now, body),
    }
    with (
        httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False, follow_redirects=False) as client,
        _closed_after(ATTEMPT_SECONDS, client),
        client.stream(
            "POST",
            f"{target.scheme}://{address}:{target.port}{target.path}",
            content=body,
            headers=headers,
            extensions={"sni_hostname": target.host},  # the certificate is checked against the name, too
        ) as response,
    ):
        _read_a_little(response)
        return None if response.is_success else f"the receiver answered {response.status_code}"


@contextmanager
def _closed_after(seconds: float, client: httpx.Client) -> Iterator[None]:
    """Close the client's connections when the block lasts that long: httpx limits each read, not all of them, and a
    receiver may send a byte now and then for ever."""
    timer = threading.Timer(seconds, client.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read_a_little(response: httpx.Response) -> None:
    """The answer's body means nothing, but many receivers call a connection cut before its end an error."""
    deadline, received = time.monotonic() + TIMEOUT_SECONDS, 0
    for chunk in response.iter_raw():
        received += len(chunk)
        if received > MAX_ANSWER_BYTES or time.monotonic() > deadline:
            return

"""Deliveries are signed, at least once, in order within a job, and tried again; a rolled-back change tells nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import select
from standardwebhooks import Webhook, WebhookVerificationError

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import WebhookDelivery
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import lifecycle, queue
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from jenga_core.service.webhooks import delivery, endpoints, outbox
from jenga_core.service.webhooks.outbox import EVENT_TYPES
from tests.support.jobs import Seed, force, seed, submit_job
from tests.support.receiver import Receiver, receiving


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Receivers are on this machine."""
    return settings.model_copy(update={"webhooks_to_private_addresses": True})


@pytest.fixture
def seeded(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Seed:
    monkeypatch.setattr(queue, "ring", lambda _job_id: True)
    return seed(database, settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def listen(database: Database, seeded: Seed, url: str, *events: str) -> str:
    with database.writing() as session:
        return endpoints.create(session, seeded.team_id, url, events or EVENT_TYPES).id


def live(database: Database, seeded: Seed) -> str:
    """A job that is claimed and succeeds, told of twice; its id."""
    job_id = submit_job(database, seeded)
    with database.writing() as session:
        job = lifecycle.claim(session, job_id, lease_seconds=60)
        assert job is not None and job.lease_token is not None
        lifecycle.settle(session, job_id, job.lease_token, JobState.SUCCEEDED)
    return job_id


def rows(database: Database) -> list[WebhookDelivery]:
    with database.reading() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq)))


def due_now(database: Database) -> None:
    """As if the wait before the next attempt were over."""
    with database.writing() as session:
        for row in session.scalars(select(WebhookDelivery).where(WebhookDelivery.next_attempt_at.is_not(None))):
            row.next_attempt_at = database_now()


def types(receiver: Receiver) -> list[tuple[str, str]]:
    """Type and job of what came."""
    bodies = [json.loads(body) for _, body in receiver.came]
    return [(body["type"].rpartition(".")[2], body["data"]["id"]) for body in bodies]


def test_a_job_is_told_of_in_order_and_signed(
    database: Database, settings: Settings, seeded: Seed, receiver: Receiver
) -> None:
    endpoint = listen(database, seeded, receiver.url)
    job_id = live(database, seeded)
    assert delivery.deliver(settings, database) == 2
    assert types(receiver) == [("running", job_id), ("succeeded", job_id)]
    headers, body = receiver.came[1]
    secret = Webhook(endpoints.secret_of(endpoint, settings.pepper))
    event = secret.verify(body, headers)
    assert event == {
        "id": headers["webhook-id"],
        "object": "event",
        "created_at": event["created_at"],
        "type": "fine_tuning.job.succeeded",
        "data": {"id": job_id},
    }
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    with pytest.raises(WebhookVerificationError):
        secret.verify(body.replace(b"succeeded", b"cancelled"), headers)
    assert [row.last_error for row in rows(database) if row.delivered_at and row.next_attempt_at is None] == [None] * 2
    assert delivery.deliver(settings, database) == 0


def test_a_failure_holds_back_its_own_job_and_no_other(
    database: Database, settings: Settings, seeded: Seed, receiver: Receiver
) -> None:
    listen(database, seeded, receiver.url)
    first = live(database, seeded)
    receiver.answers = [500]
    delivery.deliver(settings, database)
    assert types(receiver) == [("running", first)]
    second = live(database, seeded)
    delivery.deliver(settings, database)
    assert types(receiver)[1:] == [("running", second), ("succeeded", second)]
    due_now(database)
    delivery.deliver(settings, database)
    assert types(receiver)[3:] == [("running", first), ("succeeded", first)]
    ids = [headers["webhook-id"] for headers, _ in receiver.came]
    assert ids[0] == ids[3]  # the repetition can be told
    assert len(set(ids)) == 4


def test_attempts_are_spaced_and_end(database: Database, settings: Settings, seeded: Seed, receiver: Receiver) -> None:
    listen(database, seeded, receiver.url, "fine_tuning.job.succeeded")
    live(database, seeded)
    receiver.answers = [503] * 100
    waits = []
    for _ in range(len(delivery.BACKOFF_SECONDS) + 1):
        delivery.deliver(settings, database)
        (row,) = rows(database)
        with database.reading() as session:
            now = session.scalars(select(database_now())).one()
        waits.append(None if row.next_attempt_at is None else row.next_attempt_at - now)
        due_now(database)
    assert waits[:-1] == pytest.approx(delivery.BACKOFF_SECONDS, abs=30)
    assert waits[-1] is None
    assert (row.attempts, row.delivered_at, row.last_error) == (len(waits), None, "the receiver answered 503")
    assert len(receiver.came) == len(waits)


def test_what_a_dead_sender_had_claimed_is_sent_by_the_next(
    database: Database, settings: Settings, seeded: Seed, receiver: Receiver
) -> None:
    listen(database, seeded, receiver.url)
    job_id = live(database, seeded)
    with database.writing() as session:
        assert len(delivery._claim(session)) == 1  # and then it dies
    assert delivery.deliver(settings, database) == 0
    due_now(database)
    delivery.deliver(settings, database)
    assert types(receiver) == [("running", job_id), ("succeeded", job_id)]


def test_a_redirect_is_not_followed(database: Database, settings: Settings, seeded: Seed, receiver: Receiver) -> None:
    with receiving() as elsewhere:
        listen(database, seeded, receiver.url, "fine_tuning.job.succeeded")
        live(database, seeded)
        receiver.answers, receiver.location = [302], elsewhere.url
        delivery.deliver(settings, database)
        assert elsewhere.came == []
    assert rows(database)[0].last_error == "the receiver answered 302"


def test_nobody_listens_is_an_error_of_the_receiver(database: Database, settings: Settings, seeded: Seed) -> None:
    with receiving() as gone:
        pass
    listen(database, seeded, gone.url, "fine_tuning.job.succeeded")
    live(database, seeded)
    delivery.deliver(settings, database)
    assert "ConnectError" in str(rows(database)[0].last_error)


def test_an_address_that_became_private_is_not_called(
    database: Database, settings: Settings, seeded: Seed, receiver: Receiver
) -> None:
    listen(database, seeded, receiver.url, "fine_tuning.job.succeeded")
    live(database, seeded)
    strict = settings.model_copy(update={"webhooks_to_private_addresses": False})
    delivery.deliver(strict, database)
    assert receiver.came == []
    assert "https" in str(rows(database)[0].last_error)


def test_only_what_was_asked_for_and_only_the_own_team(database: Database, settings: Settings, seeded: Seed) -> None:
    others = seed(database, settings)
    listen(database, others, "https://93.184.215.14/")
    mine = listen(database, seeded, "https://93.184.215.14/", "fine_tuning.job.cancelled")
    live(database, seeded)
    job_id = submit_job(database, seeded)
    with database.writing() as session:
        lifecycle.request_cancel(session, job_id)
    assert [(row.endpoint_id, row.job_id, row.payload["type"]) for row in rows(database)] == [
        (mine, job_id, "fine_tuning.job.cancelled")
    ]


def test_a_change_that_is_rolled_back_tells_nothing(database: Database, seeded: Seed) -> None:
    listen(database, seeded, "https://93.184.215.14/")
    job_id = submit_job(database, seeded)
    with database.reading() as session:  # never commits
        lifecycle.request_cancel(session, job_id)
        assert session.scalars(select(WebhookDelivery)).all()
    assert rows(database) == []


def test_pausing_is_told_and_a_stop_that_changes_no_state_is_not(database: Database, seeded: Seed) -> None:
    listen(database, seeded, "https://93.184.215.14/")
    job_id = submit_job(database, seeded)
    with database.writing() as session:
        lifecycle.request_pause(session, job_id)
        lifecycle.resume(session, job_id)
        job = lifecycle.claim(session, job_id, lease_seconds=60)
        assert job is not None
        job.step = 3
        session.flush()
        lifecycle.request_stop(session, job_id)
    assert [row.payload["type"].rpartition(".")[2] for row in rows(database)] == ["paused", "running"]


def test_old_deliveries_are_forgotten(database: Database, seeded: Seed) -> None:
    listen(database, seeded, "https://93.184.215.14/")
    live(database, seeded)
    with database.writing() as session:
        over, waiting = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.seq))
        over.created_at = waiting.created_at = database_now() - outbox.KEEP_SECONDS - 1
        over.next_attempt_at = None
    with database.writing() as session:
        outbox.forget(session)
    assert [row.seq for row in rows(database)] == [waiting.seq]


def test_an_endpoint_goes_with_what_it_was_not_told(database: Database, seeded: Seed) -> None:
    endpoint = listen(database, seeded, "https://93.184.215.14/")
    live(database, seeded)
    with database.writing() as session:
        session.delete(endpoints.get(session, seeded.team_id, endpoint))
    assert rows(database) == []


def test_a_held_job_that_is_cancelled_by_its_supervisor_is_told_once(database: Database, seeded: Seed) -> None:
    listen(database, seeded, "https://93.184.215.14/", "fine_tuning.job.cancelled")
    job_id = submit_job(database, seeded)
    force(database, job_id, JobState.RUNNING, token="t")
    with database.writing() as session:
        lifecycle.request_cancel(session, job_id)
        lifecycle.settle(session, job_id, "t", JobState.CANCELLED)
    assert len(rows(database)) == 1


def test_a_receiver_that_sends_a_byte_now_and_then_is_left(
    database: Database, settings: Settings, seeded: Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is in time, the answer never is."""
    monkeypatch.setattr(delivery, "ATTEMPT_SECONDS", 0.5)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not over.wait(0.1):
                    try:
                        connection.send(b"H")
                    except OSError:
                        return

        receiver = threading.Thread(target=drip)
        receiver.start()
        try:
            listen(database, seeded, f"http://127.0.0.1:{server.getsockname()[1]}/")
            live(database, seeded)
            began = time.monotonic()
            assert delivery.deliver(settings, database) >= 1
            assert time.monotonic() - began < 10
        finally:
            over.set()
            receiver.join(30)
    assert all(row.delivered_at is None and row.last_error for row in rows(database) if row.attempts)

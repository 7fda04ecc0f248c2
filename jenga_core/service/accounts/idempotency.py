"""A request that is sent again finds the job that it made: a lost answer never makes two.

    Idempotency-Key: K              the job that this key of the API made with K, for ever; another body is a conflict
    x-stainless-retry-count: 1 ...  the client repeats by itself: the newest job that the key made with this body in
                                    the last RETRY_SECONDS seconds

The caller holds the lock on the team's row, so that two of the same request come one after the other.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.errors import ConflictError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, JobRequest

RETRY_SECONDS = 900.0
"""OpenAI's client waits 600 s for an answer before it asks again."""


def digest(body: dict[str, Any]) -> str:
    """SHA-256 of a validated body, the same for every spelling of it."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def made_before(
    session: Session, key_id: str, body_sha256: str, *, idempotency_key: str | None, is_retry: bool
) -> Job | None:
    """The job that this request made already. Raises ConflictError when the key was used with another body."""
    of_key = select(JobRequest).where(JobRequest.key_id == key_id)
    if idempotency_key is not None:
        request = session.scalars(of_key.where(JobRequest.idempotency_key == idempotency_key)).one_or_none()
        if request is not None and request.body_sha256 != body_sha256:
            raise ConflictError(
                f"Idempotency-Key {idempotency_key!r} made job {request.job_id} from another body; use a new key",
                code="idempotency_conflict",
            )
    elif is_retry:
        alike = (JobRequest.body_sha256 == body_sha256) & (JobRequest.created_at > database_now() - RETRY_SECONDS)
        newest = of_key.where(alike).order_by(JobRequest.created_at.desc()).limit(1)
        request = session.scalars(newest).one_or_none()
    else:
        return None
    return session.get_one(Job, request.job_id) if request is not None else None


def remember(session: Session, key_id: str, job_id: str, body_sha256: str, idempotency_key: str | None) -> None:
    """Note which request made the job."""
    session.add(
        JobRequest(
            job_id=job_id,
            key_id=key_id,
            body_sha256=body_sha256,
            idempotency_key=idempotency_key,
            created_at=database_now(),
        )
    )

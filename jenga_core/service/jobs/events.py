"""What happened to a job, in order: sequence numbers 1, 2, 3, ... without gaps or repeats, whoever writes.

The number comes from a counter on the job row, so two writers (a supervisor and a cancel request) are ordered by the
row's lock. A supervisor passes its lease token, which makes a late write fail instead of interleave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, JobEvent


def append(
    session: Session,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: Mapping[str, Any] | None = None,
    token: str | None = None,
) -> int | None:
    """Add one event; return its sequence number, or None when `token` no longer holds the job (nothing is written)."""
    where = Job.id == job_id if token is None else (Job.id == job_id) & (Job.lease_token == token)
    counter = update(Job).where(where).values(event_seq=Job.event_seq + 1).returning(Job.event_seq)
    seq = session.scalars(counter).one_or_none()
    if seq is not None:
        session.add(
            JobEvent(
                job_id=job_id,
                seq=seq,
                level=level,
                type=type,
                message=message,
                data=dict(data) if data is not None else None,
                created_at=database_now(),
            )
        )
        session.flush()
    return seq


def event_id(job_id: str, seq: int) -> str:
    """`ftevent-<job>-<seq>`, the cursor of OpenAI's pagination."""
    return f"ftevent-{job_id.removeprefix('ftjob-')}-{seq}"


def seq_of(job_id: str, event: str) -> int | None:
    """The sequence number inside an event id of this job; None when it is not one."""
    prefix = event_id(job_id, 0)[:-1]
    digits = event.removeprefix(prefix)
    return int(digits) if event.startswith(prefix) and digits.isascii() and digits.isdigit() else None

"""The only writer of a job's state.

Every move is one compare-and-set, `UPDATE jobs SET ... WHERE id AND state [AND lease_token]`. No row changed means that
somebody else was first: JobConflict for a caller, LeaseLost for a supervisor, which must then kill its trainer and
leave. The caller owns the transaction; nothing here commits.

    submit -> queued -> claim -> running -> settle -> succeeded | failed | cancelled
                          ^          |
                          +- requeue +    (trainer killed, attempts left)
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from jenga_core.errors import ConflictError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job
from jenga_core.service.jobs import events, queue
from jenga_core.service.jobs.state import ALLOWED, JobStage, JobState


class JobConflict(ConflictError):
    """The job is in a state that does not allow this."""

    code = "job_state_conflict"


class LeaseLost(Exception):
    """The lease token no longer holds the job: stop writing, kill the trainer, leave."""


def submit(session: Session, job: Job) -> Job:
    """Insert a job in state queued, tell its first event, and ring the doorbell once the transaction commits."""
    job.state, job.stage, job.rung_at = JobState.QUEUED, JobStage.VALIDATE, database_now()
    session.add(job)
    session.flush()
    events.append(session, job.id, f"Created fine-tuning job: {job.id}")
    queue.ring_after_commit(session, job.id)
    return job


def claim(session: Session, *, lease_seconds: float) -> Job | None:
    """Take the oldest queued job, if there is one: state running, attempt + 1, a fresh lease token.

    One statement, so two supervisors never get the same row (PostgreSQL skips rows that others are looking at; SQLite
    has one writer).
    """
    oldest = (
        select(Job.id)
        .where(Job.state == JobState.QUEUED)
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(Job)
        .where(Job.id == oldest.scalar_subquery(), Job.state == JobState.QUEUED)
        .values(
            state=JobState.RUNNING,
            stage=JobStage.VALIDATE,
            attempt=Job.attempt + 1,
            lease_token=secrets.token_hex(16),
            lease_expires_at=database_now() + lease_seconds,
            started_at=database_now(),
        )
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def renew(session: Session, job_id: str, token: str, *, lease_seconds: float) -> JobState:
    """Prolong the lease; return the state, in which a request to cancel shows. Raises LeaseLost."""
    statement = (
        update(Job)
        .where(_holds(job_id, token))
        .values(lease_expires_at=database_now() + lease_seconds)
        .returning(Job.state)
    )
    return JobState(_exactly_one(session.scalars(statement).one_or_none(), job_id))


def record(session: Session, job_id: str, token: str, **values: Any) -> None:
    """Write progress (stage, step, total_steps, trained_tokens, report) while holding the lease. Raises LeaseLost."""
    statement = update(Job).where(_holds(job_id, token)).values(**values).returning(Job.id)
    _exactly_one(session.scalars(statement).one_or_none(), job_id)


def settle(
    session: Session,
    job_id: str,
    token: str,
    to: JobState,
    *,
    error: Mapping[str, Any] | None = None,
    **values: Any,
) -> None:
    """End a held job: succeeded, failed or cancelled; the lease ends with it. Raises LeaseLost."""
    assert to.is_terminal, to
    _release(session, job_id, token, to, finished_at=database_now(), error=dict(error) if error else None, **values)


def requeue(session: Session, job_id: str, token: str, *, counted: bool = True) -> None:
    """Give a running job back to the queue and ring. Raises LeaseLost (also when it is no longer plainly running).

    `counted=False` hands the attempt back: a worker that shuts down is not the job's fault.
    """
    attempt = Job.attempt if counted else Job.attempt - 1
    _release(session, job_id, token, JobState.QUEUED, attempt=attempt, rung_at=database_now())
    queue.ring_after_commit(session, job_id)


def request_cancel(session: Session, job_id: str) -> JobState:
    """A waiting job is cancelled at once; a held one becomes cancelling, which its supervisor notices.

    Asking again is harmless. Raises JobConflict when the job has ended otherwise.
    """
    if _move(session, _in(job_id, JobState.QUEUED, JobState.PAUSED), JobState.CANCELLED, finished_at=database_now()):
        events.append(session, job_id, "The job was cancelled before it ran", level="warn")
        return JobState.CANCELLED
    if _move(session, _in(job_id, JobState.RUNNING, JobState.PAUSING), JobState.CANCELLING):
        events.append(session, job_id, "Cancellation requested", level="warn")
        return JobState.CANCELLING
    state = JobState(session.scalars(select(Job.state).where(Job.id == job_id)).one())
    if state in (JobState.CANCELLING, JobState.CANCELLED):
        return state
    raise JobConflict(f"job {job_id} has already {state}; only a queued or running job can be cancelled")


def expired(session: Session) -> list[Job]:
    """Held jobs whose lease ran out by the database's clock: their supervisor is dead or frozen."""
    held = [state for state in JobState if state.is_held]
    statement = select(Job).where(Job.state.in_(held), Job.lease_expires_at < database_now())
    return list(session.scalars(statement))


def take_back(session: Session, job: Job, *, max_attempts: int) -> JobState | None:
    """Settle a job whose lease ran out: queued again, failed when its attempts are used up, cancelled if that was
    asked.

    Guarded by the token that was seen and by the clock, so a supervisor that renewed meanwhile keeps its job (None).
    """
    assert job.lease_token is not None
    ran_out = _holds(job.id, job.lease_token) & (Job.lease_expires_at < database_now())
    state = JobState(job.state)
    values: dict[str, Any]
    reason = f"worker lost: the lease of attempt {job.attempt} ran out"
    if state is JobState.CANCELLING:
        to, values = JobState.CANCELLED, {"finished_at": database_now()}
    elif state is JobState.PAUSING:
        to, values = JobState.PAUSED, {}
    elif job.attempt < max_attempts:
        to, values = JobState.QUEUED, {"rung_at": database_now()}
    else:
        to = JobState.FAILED
        values = {"finished_at": database_now(), "error": {"code": "worker_lost", "message": reason, "param": None}}
    if not _move(session, ran_out & (Job.state == state), to, lease_token=None, lease_expires_at=None, **values):
        return None
    events.append(session, job.id, f"{reason}; the job is now {to}", level="warn")
    if to is JobState.QUEUED:
        queue.ring_after_commit(session, job.id)
    return to


def unrung(session: Session, *, older_than_seconds: float) -> list[str]:
    """Ids of queued jobs whose doorbell was last rung longer ago than that; stamps them as rung now."""
    statement = (
        update(Job)
        .where(
            Job.state == JobState.QUEUED,
            (Job.rung_at.is_(None)) | (Job.rung_at < database_now() - older_than_seconds),
        )
        .values(rung_at=database_now())
        .returning(Job.id)
    )
    return list(session.scalars(statement))


def _release(session: Session, job_id: str, token: str, to: JobState, **values: Any) -> None:
    sources = [source for source, targets in ALLOWED.items() if to in targets]
    where = _holds(job_id, token) & Job.state.in_(sources)
    if not _move(session, where, to, lease_token=None, lease_expires_at=None, **values):
        raise LeaseLost(job_id)


def _move(session: Session, where: ColumnElement[bool], to: JobState, **values: Any) -> bool:
    """The compare-and-set itself; True when a row moved."""
    statement = update(Job).where(where).values(state=to, **values).returning(Job.id)
    return session.scalars(statement).one_or_none() is not None


def _in(job_id: str, *states: JobState) -> ColumnElement[bool]:
    return (Job.id == job_id) & Job.state.in_(states)


def _holds(job_id: str, token: str) -> ColumnElement[bool]:
    return (Job.id == job_id) & (Job.lease_token == token)


def _exactly_one(value: str | None, job_id: str) -> str:
    if value is None:
        raise LeaseLost(job_id)
    return value

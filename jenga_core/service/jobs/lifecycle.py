"""The only writer of a job's state.

Every move is one compare-and-set, `UPDATE jobs SET ... WHERE id AND state [AND lease_token]`. No row changed means that
somebody else was first: JobConflict for a caller, LeaseLost for a supervisor, which must then kill its trainer and
leave. The caller owns the transaction; nothing here commits.

    submit -> queued -> claim -> running -> settle -> succeeded | failed | cancelled
              ^  ^               |     |
              |  +---- requeue --+     +- request_pause -> pausing -> pause -> paused
              +------------------------------- resume ----------------------------+

`requeue`: the trainer was killed and attempts are left, its worker shuts down, or it gives way to the first in line.
Wishes that are no states of their own (finish now, give way) are columns; whoever renews the lease is told of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from jenga_core.errors import ConflictError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, JobCheckpoint
from jenga_core.service.fleet import leases
from jenga_core.service.jobs import events, queue
from jenga_core.service.jobs.state import ALLOWED, JobStage, JobState
from jenga_core.service.webhooks import outbox

LAST_STAGES = (JobStage.EVALUATE, JobStage.PUBLISH)
"""Training is over; the job is about to end by itself."""


class JobConflict(ConflictError):
    """The job is in a state that does not allow this."""

    code = "job_state_conflict"


class LeaseLost(Exception):
    """The lease token no longer holds the job: stop writing, kill the trainer, leave."""


@dataclass(frozen=True)
class Wishes:
    """What a supervisor is asked for, as of its newest renewal."""

    state: JobState
    """`pausing` and `cancelling` are wishes too."""

    finish: bool = False
    """Stop training, then evaluate and publish what there is."""

    give_way: bool = False
    """Save, and go back to the queue: the first in line can use the devices."""


_SAVED_STEP = (
    select(func.coalesce(func.max(JobCheckpoint.step), 0))
    .where(JobCheckpoint.job_id == Job.id)
    .correlate(Job)
    .scalar_subquery()
)
"""Where a job that is held no more will go on; the steps after it are lost."""


def submit(session: Session, job: Job) -> Job:
    """Insert a job in state queued, tell its first event, and ring the doorbell once the transaction commits."""
    job.state, job.stage, job.rung_at = JobState.QUEUED, JobStage.VALIDATE, database_now()
    session.add(job)
    session.flush()
    events.append(session, job.id, f"Created fine-tuning job: {job.id}")
    queue.ring_after_commit(session, job.id)
    return job


def claim(
    session: Session, job_id: str, *, lease_seconds: float, devices: Sequence[str] = (), filler: bool = False
) -> Job | None:
    """Take this queued job and these devices: state running, attempt + 1, a fresh lease token.

    None when it is queued no more. Which job is whose turn is decided in fleet/placement.py.
    """
    statement = (
        update(Job)
        .where(_in(job_id, JobState.QUEUED))
        .values(
            state=JobState.RUNNING,
            stage=JobStage.VALIDATE,
            attempt=Job.attempt + 1,
            lease_token=secrets.token_hex(16),
            lease_expires_at=database_now() + lease_seconds,
            started_at=database_now(),
            filler=filler,
            give_way_at=None,
        )
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    job = session.scalars(statement).one_or_none()
    if job is not None:
        assert job.lease_token is not None
        leases.hold(session, job.id, job.lease_token, devices)
        outbox.note(session, job.id, JobState.RUNNING)
    return job


def renew(session: Session, job_id: str, token: str, *, lease_seconds: float) -> Wishes:
    """Prolong the lease; return what is asked of the job. Raises LeaseLost."""
    statement = (
        update(Job)
        .where(_holds(job_id, token))
        .values(lease_expires_at=database_now() + lease_seconds)
        .returning(Job.state, Job.stop_asked_at, Job.give_way_at)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        raise LeaseLost(job_id)
    return Wishes(JobState(row.state), finish=row.stop_asked_at is not None, give_way=row.give_way_at is not None)


def record(session: Session, job_id: str, token: str, **values: Any) -> None:
    """Write progress (stage, step, total_steps, trained_tokens, report) while holding the lease. Raises LeaseLost."""
    statement = update(Job).where(_holds(job_id, token)).values(**values).returning(Job.id)
    if session.scalars(statement).one_or_none() is None:
        raise LeaseLost(job_id)


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


def requeue(session: Session, job_id: str, token: str, *, counted: bool = True, **values: Any) -> None:
    """Give a running job back to the queue and ring. Raises LeaseLost (also when it is no longer plainly running).

    `counted=False` hands the attempt back: a worker that shuts down is not the job's fault.
    """
    attempt = Job.attempt if counted else Job.attempt - 1
    _release(session, job_id, token, JobState.QUEUED, attempt=attempt, rung_at=database_now(), **values)
    queue.ring_after_commit(session, job_id)


def pause(session: Session, job_id: str, token: str) -> None:
    """A pausing job's trainer is gone: paused, the attempt not counted. Raises LeaseLost."""
    _release(session, job_id, token, JobState.PAUSED, attempt=Job.attempt - 1)


def request_pause(session: Session, job_id: str) -> JobState:
    """A waiting job is paused at once; a held one becomes pausing until its trainer has saved and gone.

    Asking again is harmless. Raises JobConflict when the job ends anyway: it has ended, is being cancelled, was asked
    to finish, or is in one of the last stages, which the message names.
    """
    if _move(session, _in(job_id, JobState.QUEUED), JobState.PAUSED):
        events.append(session, job_id, "The job was paused while it waited")
        return JobState.PAUSED
    training = _in(job_id, JobState.RUNNING) & Job.stage.not_in(LAST_STAGES) & Job.stop_asked_at.is_(None)
    if _move(session, training, JobState.PAUSING):
        events.append(session, job_id, "Pause requested")
        return JobState.PAUSING
    job = _as_it_is(session, job_id)
    if job.state in (JobState.PAUSING, JobState.PAUSED):
        return JobState(job.state)
    if job.state == JobState.RUNNING:
        why = f"is in stage {job.stage}" if job.stage in LAST_STAGES else "was asked to finish"
        raise JobConflict(
            f"job {job_id} {why} and ends by itself; it cannot be paused any more", code="job_not_pausable"
        )
    raise JobConflict(f"job {job_id} is {job.state}; only a queued or running job can be paused")


def resume(session: Session, job_id: str) -> JobState:
    """Queue a paused job and ring; it goes on from its newest checkpoint. Harmless when it is queued or running.

    Raises JobConflict while it is still pausing, and when it has ended or is being cancelled.
    """
    if _move(session, _in(job_id, JobState.PAUSED), JobState.QUEUED, rung_at=database_now()):
        events.append(session, job_id, "The job was resumed and waits in the queue")
        queue.ring_after_commit(session, job_id)
        return JobState.QUEUED
    state = JobState(_as_it_is(session, job_id).state)
    if state in (JobState.QUEUED, JobState.RUNNING):
        return state
    hint = "; wait until it is paused" if state is JobState.PAUSING else ""
    raise JobConflict(f"job {job_id} is {state}; only a paused job can be resumed{hint}")


def request_stop(session: Session, job_id: str) -> JobState:
    """Finish now with what is trained: a last checkpoint, evaluation, publication. A paused job is queued for it.

    Asking again is harmless. Raises JobConflict when nothing is trained yet, when training is over already (the message
    names the stage), and when the job is pausing or being cancelled or has ended.
    """
    begun = (Job.step > 0) | (Job.state == JobState.RUNNING) & (Job.stage == JobStage.FINETUNE)
    open_to_it = (Job.stop_asked_at.is_(None) | (Job.state == JobState.PAUSED)) & begun
    training = _in(job_id, JobState.RUNNING) & Job.stage.not_in(LAST_STAGES)
    told = "Stop requested: the job finishes with what is trained"
    for where, to in (
        (training, JobState.RUNNING),
        (_in(job_id, JobState.QUEUED, JobState.PAUSED), JobState.QUEUED),
    ):
        if _move(session, where & open_to_it, to, stop_asked_at=database_now()):
            events.append(session, job_id, told)
            if to is JobState.QUEUED:
                queue.ring_after_commit(session, job_id)
            return to
    job = _as_it_is(session, job_id)
    if job.stop_asked_at is not None and job.state in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED):
        return JobState(job.state)
    if job.state not in (JobState.QUEUED, JobState.PAUSED, JobState.RUNNING):
        hint = "; resume it first" if job.state == JobState.PAUSING else ""
        raise JobConflict(f"job {job_id} is {job.state}; only a job that trains can be stopped{hint}")
    if job.state == JobState.RUNNING and job.stage in LAST_STAGES:
        raise JobConflict(f"job {job_id} is in stage {job.stage}: training is over and the job ends by itself")
    raise JobConflict(f"job {job_id} is in stage {job.stage} and has trained no step yet; cancel it instead")


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
    state = JobState(_as_it_is(session, job_id).state)
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
        to, values = JobState.PAUSED, {"step": _SAVED_STEP}
    elif job.attempt < max_attempts:
        to, values = JobState.QUEUED, {"rung_at": database_now(), "step": _SAVED_STEP}
    else:
        to = JobState.FAILED
        values = {"finished_at": database_now(), "error": {"code": "worker_lost", "message": reason, "param": None}}
    if not _move(session, ran_out & (Job.state == state), to, lease_token=None, lease_expires_at=None, **values):
        return None
    leases.release(session, job.id)
    events.append(session, job.id, f"{reason}; the job is now {to}", level="warn")
    _forget_a_vain_stop(session, job.id, to)
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
    sources = [source for source, targets in ALLOWED.items() if to in targets and source.is_held]
    where = _holds(job_id, token) & Job.state.in_(sources)
    if not to.is_terminal:
        values = {"step": _SAVED_STEP, **values}
    if not _move(session, where, to, lease_token=None, lease_expires_at=None, **values):
        raise LeaseLost(job_id)
    leases.release(session, job_id)
    _forget_a_vain_stop(session, job_id, to)


def _forget_a_vain_stop(session: Session, job_id: str, to: JobState) -> None:
    """A job that was to finish with what is trained, and goes back to the queue with nothing, trains again."""
    vain = (Job.id == job_id) & Job.stop_asked_at.is_not(None) & (Job.step == 0)
    if (
        to is JobState.QUEUED
        and session.scalars(update(Job).where(vain).values(stop_asked_at=None).returning(Job.id)).one_or_none()
    ):
        told = (
            "What was trained is lost before it was saved; the job trains again, and can be stopped or cancelled again"
        )
        events.append(session, job_id, told, level="warn")


def _move(session: Session, where: ColumnElement[bool], to: JobState, **values: Any) -> bool:
    """The compare-and-set itself; True when a row moved. Webhooks hear of it; of running jobs, from `claim`."""
    statement = update(Job).where(where).values(state=to, **values).returning(Job.id)
    job_id = session.scalars(statement).one_or_none()
    if job_id is not None and to is not JobState.RUNNING:
        outbox.note(session, job_id, to)
    return job_id is not None


def _as_it_is(session: Session, job_id: str) -> Job:
    """The row, read again."""
    return session.get_one(Job, job_id, populate_existing=True)


def _in(job_id: str, *states: JobState) -> ColumnElement[bool]:
    return (Job.id == job_id) & Job.state.in_(states)


def _holds(job_id: str, token: str) -> ColumnElement[bool]:
    return (Job.id == job_id) & (Job.lease_token == token)

"""What can be asked about a team's jobs. Reading only: `spec` makes a job, `lifecycle` moves its state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.errors import NotFoundError
from jenga_core.service import pagination
from jenga_core.service.db.models import Job, JobCheckpoint, JobEvent, JobMemory, JobMetric, JobSelection
from jenga_core.service.jobs.events import seq_of
from jenga_core.service.pagination import CursorError, Page

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

PerStep = TypeVar("PerStep", JobMetric, JobSelection)


def get(session: Session, team_id: str, job_id: str) -> Job:
    """The team's job. Raises NotFoundError."""
    job = session.scalars(select(Job).where(Job.id == job_id, Job.team_id == team_id)).one_or_none()
    if job is None:
        raise NotFoundError(f"No such fine-tuning job: {job_id!r}. Jobs of this key: GET /v1/fine_tuning/jobs")
    return job


def page(
    session: Session,
    team_id: str,
    *,
    after: str | None,
    limit: int,
    metadata: Mapping[str, str] | None = None,
    without_metadata: bool = False,
) -> Page[Job]:
    """The team's jobs, newest first: all, those whose metadata has these entries, or those that have none.

    Raises CursorError.
    """

    def keep(job: Job) -> bool:
        if without_metadata:
            return not job.tags
        return all((job.tags or {}).get(key) == value for key, value in (metadata or {}).items())

    statement = select(Job).where(Job.team_id == team_id)
    for key, value in (metadata or {}).items():
        if _PLAIN_KEY.fullmatch(key):  # SQLite spells other keys in a way that not all of them survive
            statement = statement.where(Job.tags[key].as_string() == value)
    wanted = keep if metadata or without_metadata else None
    return pagination.by_age(session, statement, Job, after=after, limit=limit, keep=wanted)


def events(session: Session, job: Job, *, after: str | None, limit: int) -> Page[JobEvent]:
    """Its events, newest first; `after` is an event's id. Raises CursorError."""
    statement = select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.seq.desc())
    if after is not None:
        statement = statement.where(JobEvent.seq < seq_after(job, after))
    return Page.of(session.scalars(statement.limit(limit + 1)), limit)


def seq_after(job: Job, event: str) -> int:
    """The number of this event of the job. Raises CursorError."""
    seq = seq_of(job.id, event)
    if seq is None or not 1 <= seq <= job.event_seq:
        raise CursorError(event)
    return seq


def events_since(session: Session, job_id: str, seq: int, *, limit: int) -> list[JobEvent]:
    """Its events behind that number, oldest first."""
    later = (JobEvent.job_id == job_id) & (JobEvent.seq > seq)
    return list(session.scalars(select(JobEvent).where(later).order_by(JobEvent.seq).limit(limit)))


def checkpoints(session: Session, job: Job, *, after: str | None, limit: int) -> Page[JobCheckpoint]:
    """Its checkpoints, newest first. Raises CursorError."""
    statement = select(JobCheckpoint).where(JobCheckpoint.job_id == job.id)
    return pagination.by_age(session, statement, JobCheckpoint, after=after, limit=limit)


def per_step(session: Session, job: Job, table: type[PerStep], *, after_step: int, limit: int) -> Page[PerStep]:
    """Its metrics or selections, in the order of their steps, from the step behind `after_step` on."""
    of_job: Any = (table.job_id == job.id) & (table.step > after_step)
    return Page.of(session.scalars(select(table).where(of_job).order_by(table.step).limit(limit + 1)), limit)


def memory(session: Session, job: Job) -> list[JobMemory]:
    """Its memory, one row per phase, in the order they were measured."""
    statement = select(JobMemory).where(JobMemory.job_id == job.id)
    return list(session.scalars(statement.order_by(JobMemory.created_at, JobMemory.phase)))

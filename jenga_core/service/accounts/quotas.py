"""What a team may use, what it uses, and the refusals in between.

    storage bytes    files, and parts of unfinished uploads         refused when a file arrives: 403
    queued jobs      queued or paused                               refused when a job is made: 429
    GPU hours        of the last WINDOW_DAYS days                   refused when a job is made or resumed: 403
    running jobs     held by a worker                               never refused: the job waits (fleet/placement.py)

A check is exact only while the team's row is locked (`teams.get(lock=True)`), which whoever adds something does; on
SQLite every writing session is alone anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from jenga_core.errors import JengaError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, StoredFile, Team, Upload, UploadPart
from jenga_core.service.jobs.state import JobState

WINDOW_DAYS = 30
"""GPU hours are counted over this many days back from now."""

_WAITING = (JobState.QUEUED, JobState.PAUSED)
_HELD = tuple(state for state in JobState if state.is_held)


class QuotaExceeded(JengaError):
    """The team uses all that it may; waiting a little does not help."""

    status, code = 403, "quota_exceeded"


class QueueFull(QuotaExceeded):
    """The team has as many jobs waiting as it may; it has room again once one of them starts or is cancelled."""

    status = 429


@dataclass(frozen=True)
class Usage:
    """What a team uses now."""

    storage_bytes: int
    queued_jobs: int
    running_jobs: int
    gpu_hours: float


def usage(session: Session, team_id: str) -> Usage:
    """Everything at once, for people to see."""
    return Usage(
        storage_bytes=storage_bytes(session, team_id),
        queued_jobs=_count(session, team_id, _WAITING),
        running_jobs=_count(session, team_id, _HELD),
        gpu_hours=gpu_hours(session, team_id),
    )


def storage_bytes(session: Session, team_id: str) -> int:
    """Bytes of the team's files and of the parts of its pending uploads."""
    files = session.scalar(select(func.sum(StoredFile.bytes)).where(StoredFile.team_id == team_id))
    pending = (Upload.team_id == team_id) & (Upload.status == "pending")
    parts = session.scalar(select(func.sum(UploadPart.bytes)).join(Upload).where(pending))
    return int(files or 0) + int(parts or 0)


def gpu_hours(session: Session, team_id: str) -> float:
    """Device hours of jobs that were running within the window: of ended attempts, and of those that run now."""
    since = database_now() - WINDOW_DAYS * 86400.0
    running = case((Job.state.in_(_HELD), (database_now() - Job.started_at) * Job.gpus), else_=0.0)
    recent = (Job.team_id == team_id) & (Job.started_at > since)
    seconds = session.scalar(select(func.sum(Job.gpu_seconds + func.coalesce(running, 0.0))).where(recent))
    return float(seconds or 0.0) / 3600


def check_storage(session: Session, team: Team, more_bytes: int) -> None:
    """Raise QuotaExceeded unless so many more bytes may be stored."""
    if team.max_storage_bytes is None:
        return
    used = storage_bytes(session, team.id)
    if used + more_bytes > team.max_storage_bytes:
        raise QuotaExceeded(
            f"Team {team.name!r} stores {used} of at most {team.max_storage_bytes} bytes, and {more_bytes} more were "
            "sent; delete files (DELETE /v1/files/ID), or ask an administrator for a larger quota"
        )


def check_new_job(session: Session, team: Team) -> None:
    """Raise QueueFull or QuotaExceeded unless the team may queue one more job."""
    if team.max_queued_jobs is not None and (waiting := _count(session, team.id, _WAITING)) >= team.max_queued_jobs:
        raise QueueFull(
            f"Team {team.name!r} has {waiting} jobs waiting, and may have {team.max_queued_jobs}; "
            "wait until one starts, or cancel one"
        )
    check_gpu_hours(session, team)


def check_gpu_hours(session: Session, team: Team) -> None:
    """Raise QuotaExceeded when the team's GPU hours are used up."""
    if team.max_gpu_hours is not None and (used := gpu_hours(session, team.id)) >= team.max_gpu_hours:
        raise QuotaExceeded(
            f"Team {team.name!r} has used {used:.1f} GPU hours in the last {WINDOW_DAYS} days, and may use "
            f"{team.max_gpu_hours:g}; wait, or ask an administrator for a larger quota"
        )


def _count(session: Session, team_id: str, states: tuple[JobState, ...]) -> int:
    of_team = (Job.team_id == team_id) & Job.state.in_(states)
    return session.scalars(select(func.count()).select_from(Job).where(of_team)).one()

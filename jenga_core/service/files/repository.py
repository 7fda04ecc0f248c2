"""The files of a team: every query begins with the team, so another team's file does not exist."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from jenga_core.errors import ConflictError, NotFoundError
from jenga_core.service import pagination
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, StoredFile
from jenga_core.service.jobs.state import JobState
from jenga_core.service.pagination import Page

UPLOAD_PURPOSE = "fine-tune"
"""What an upload is for; what a job leaves has the purpose `fine-tune-results`."""


def get(
    session: Session,
    team_id: str,
    file_id: str,
    *,
    param: str | None = None,
    lock: Literal["shared", "exclusive"] | None = None,
) -> StoredFile:
    """The team's file. Raises NotFoundError.

    A lock lasts until the transaction ends (PostgreSQL; SQLite has one writer anyway). Who makes a job shares one, who
    deletes has one alone, so no job is made for a file that is being deleted.
    """
    statement = select(StoredFile).where(StoredFile.id == file_id, StoredFile.team_id == team_id, _is_there())
    if lock is not None:
        statement = statement.with_for_update(read=lock == "shared")
    file = session.scalars(statement).one_or_none()
    if file is None:
        raise NotFoundError(f"No such file: {file_id!r}. Files of this key: GET /v1/files", param=param)
    return file


def page(
    session: Session,
    team_id: str,
    *,
    after: str | None,
    limit: int,
    newest_first: bool = True,
    purpose: str | None = None,
) -> Page[StoredFile]:
    """The team's files, all or of one purpose. Raises CursorError."""
    statement = select(StoredFile).where(StoredFile.team_id == team_id, _is_there())
    if purpose is not None:
        statement = statement.where(StoredFile.purpose == purpose)
    return pagination.by_age(session, statement, StoredFile, after=after, limit=limit, newest_first=newest_first)


def delete(session: Session, team_id: str, file_id: str) -> None:
    """Remove the row; the bytes are the caller's, once this has committed.

    Raises NotFoundError, or ConflictError while a job that has not ended needs the file.
    """
    file = get(session, team_id, file_id, lock="exclusive")
    job_id = session.scalars(select(Job.id).where(_needed_by_a_job(file_id)).limit(1)).one_or_none()
    if job_id is not None:
        raise ConflictError(
            f"File {file_id} is needed by job {job_id}; cancel the job or wait for its end", code="file_in_use"
        )
    session.delete(file)


def remove_expired(session: Session, *, limit: int) -> list[str]:
    """Remove rows of files that have expired and that no unfinished job needs; return their ids.

    The bytes are the caller's, once this has committed.
    """
    expired = (StoredFile.expires_at <= database_now()) & ~select(Job.id).where(
        _needed_by_a_job(StoredFile.id)
    ).exists()
    files = list(session.scalars(select(StoredFile).where(expired).limit(limit).with_for_update(skip_locked=True)))
    for file in files:
        session.delete(file)
    return [file.id for file in files]


def _is_there() -> ColumnElement[bool]:
    """Not expired."""
    return or_(StoredFile.expires_at.is_(None), StoredFile.expires_at > database_now())


def _needed_by_a_job(file_id: Any) -> ColumnElement[bool]:
    unfinished = [state for state in JobState if not state.is_terminal]
    return or_(Job.training_file == file_id, Job.validation_file == file_id) & Job.state.in_(unfinished)

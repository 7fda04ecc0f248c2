"""Predictors that the jobs of a team made: rows in `predictors`, files below `DATA_DIR/predictors`.

    DATA_DIR/predictors/<team>/<fingerprint of the base model>/<settings>/

The trainer looks for predictors in that place and leaves new ones there; the last part of the name is its own. The row
is for those who ask what there is. Reuse goes by the files, so a row that was never written costs nothing but itself.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.service import pagination
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import BaseModelEntry, Job, PredictorEntry, Team
from jenga_core.service.ids import new_id
from jenga_core.service.pagination import Page
from jenga_core.service.settings import Settings


def folder_of(settings: Settings, team_id: str, fingerprint: str) -> Path:
    """Where the team's predictors for a base model lie, made when missing."""
    return settings.folder("predictors", team_id, fingerprint)


def record(
    session: Session, job: Job, name: str, *, made: bool, settings: dict[str, Any], report: dict[str, Any]
) -> None:
    """Write the row of the predictors that `job` made, or found: then only if it is missing."""
    fingerprint = session.get_one(BaseModelEntry, job.model).fingerprint
    session.get_one(Team, job.team_id, with_for_update=True)  # two jobs may be here at once
    folder = str(PurePosixPath("predictors", job.team_id, fingerprint, name))
    row = session.scalars(select(PredictorEntry).where(PredictorEntry.folder == folder)).one_or_none()
    if row is not None and not made:
        return
    if row is None:
        row = PredictorEntry(id=new_id("pred-"), team_id=job.team_id, folder=folder)
        session.add(row)
    row.base_model, row.fingerprint, row.job_id = job.model, fingerprint, job.id
    row.settings, row.report = settings, report
    row.created_at = database_now()


def page(session: Session, team_id: str, *, after: str | None, limit: int) -> Page[PredictorEntry]:
    """The team's predictors, newest first. Raises CursorError."""
    statement = select(PredictorEntry).where(PredictorEntry.team_id == team_id)
    return pagination.by_age(session, statement, PredictorEntry, after=after, limit=limit)

"""Clear away what nobody needs any more. Runs every few minutes in the ops worker; doing it twice is harmless.

what                                             goes
cache/ of a job that has ended                   at once
checkpoints/ of a job that has ended             after `keep_checkpoints_days`; those of other jobs never
a stored file that no row names, a partial one   a day after it was last written
logs/*.log over LOG_BYTES                        becomes *.log.1
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from sqlalchemy import select

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, StoredFile, UploadPart
from jenga_core.service.db.session import Database
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings

ORPHAN_SECONDS = 24 * 3600.0
"""Younger files may belong to a transaction that has not committed."""

LOG_BYTES = 32 * 2**20
DAY_SECONDS = 24 * 3600.0

log = logging.getLogger(__name__)


def tidy(settings: Settings, database: Database) -> None:
    """All of the table above."""
    _tidy_jobs(settings, database)
    _tidy_files(settings, database)
    for path in settings.folder("logs").glob("*.log"):
        rotate(path)


def clear_cache(settings: Settings, job_id: str) -> None:
    """Encoded training data of a job that has ended."""
    shutil.rmtree(settings.folder("jobs", job_id) / "cache", ignore_errors=True)


def rotate(path: Path) -> None:
    """Keep a log below twice LOG_BYTES. Its writer appends, so it can be emptied under it."""
    if path.stat().st_size > LOG_BYTES:
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def _tidy_jobs(settings: Settings, database: Database) -> None:
    ended = [state for state in JobState if state.is_terminal]
    folders = {path.name: path for path in settings.folder("jobs").iterdir() if path.is_dir()}
    with database.reading() as session:
        age = database_now() - Job.finished_at
        rows = session.execute(select(Job.id, age).where(Job.state.in_(ended))).all()
    for job_id, age_seconds in rows:
        if job_id not in folders:
            continue
        clear_cache(settings, job_id)
        checkpoints = folders[job_id] / "checkpoints"
        if age_seconds is not None and age_seconds > settings.keep_checkpoints_days * DAY_SECONDS:
            if checkpoints.is_dir():
                log.info("job %s has ended %.0f days ago: its checkpoints go", job_id, age_seconds / DAY_SECONDS)
            shutil.rmtree(checkpoints, ignore_errors=True)


def _tidy_files(settings: Settings, database: Database) -> None:
    folder = settings.folder("files")
    old = [path for path in folder.iterdir() if path.is_file() and _age_seconds(path) > ORPHAN_SECONDS]
    known = _known(database, [path.name for path in old])
    if old and known.isdisjoint(path.name for path in old):
        log.warning("no row knows one of the %d old files in %s: is it another database's? They stay", len(old), folder)
        return
    for path in old:
        if path.name not in known:
            log.warning("file %s belongs to no row and goes", path.name)
            path.unlink(missing_ok=True)


def _known(database: Database, names: Collection[str]) -> set[str]:
    if not names:
        return set()
    with database.reading() as session:
        return set(session.scalars(select(StoredFile.id).union(select(UploadPart.id))))


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0

"""What goes, what stays, and when."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jenga_core.service.db.base import database_now
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from tests.support.jobs import force
from worker import tidying
from worker.tidying import DAY_SECONDS, ORPHAN_SECONDS, tidy


def job_folder(settings: Settings, job_id: str) -> Path:
    folder = settings.folder("jobs", job_id)
    for name in ("cache", "checkpoints/checkpoint-2", "output"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize("days", [1, 8])
def test_job_folders(
    settings: Settings, database: Database, submit: Callable[[str], str], state: JobState, days: int
) -> None:
    job_id = submit("succeed")
    folder = job_folder(settings, job_id)
    force(database, job_id, state, finished_at=database_now() - days * DAY_SECONDS if state.is_terminal else None)
    tidy(settings, database)
    assert (folder / "cache").exists() == (not state.is_terminal)
    assert (folder / "checkpoints" / "checkpoint-2").exists() == (not state.is_terminal or days == 1)
    assert (folder / "output").exists()


def test_files_without_a_row_go_after_a_day(
    settings: Settings, database: Database, submit: Callable[[str], str]
) -> None:
    submit("succeed")
    store = FileStore(settings)
    (owned,) = store.folder.iterdir()
    made = {name: store.folder / name for name in ("file-orphan", ".partial-x", "file-fresh")}
    for path in made.values():
        path.write_text("x")
    long_ago = time.time() - ORPHAN_SECONDS - 60
    for path in (owned, made["file-orphan"], made[".partial-x"]):
        os.utime(path, (long_ago, long_ago))
    tidy(settings, database)
    assert {path.name for path in store.folder.iterdir()} == {owned.name, "file-fresh"}


def test_logs_are_kept_short_while_somebody_writes_them(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidying, "LOG_BYTES", 10)
    long, short = (settings.folder("logs") / name for name in ("worker.log", "api.log"))
    short.write_text("short")
    with long.open("ab") as log:
        log.write(b"0123456789abcdef")
        log.flush()
        tidy(settings, database)
        log.write(b"after")
        log.flush()
    assert long.read_bytes() == b"after"
    assert long.with_name("worker.log.1").read_bytes() == b"0123456789abcdef"
    assert short.read_text() == "short"


def test_files_of_another_database_stay(settings: Settings, database: Database) -> None:
    """A new database on an old data folder knows none of them."""
    path = FileStore(settings).folder / "file-ofanotherdatabase"
    path.write_text("x")
    long_ago = time.time() - ORPHAN_SECONDS - 60
    os.utime(path, (long_ago, long_ago))
    tidy(settings, database)
    assert path.exists()

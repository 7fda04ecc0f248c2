"""What nobody will ask for again is removed, and nothing else."""

from __future__ import annotations

import os
import time

from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.files.sweep import ABANDONED_SECONDS, sweep
from jenga_core.service.settings import Settings
from tests.support.jobs import seed


def test_abandoned_halves_go_and_files_and_running_uploads_stay(database: Database, settings: Settings) -> None:
    seeded, store = seed(database, settings), FileStore(settings)
    abandoned, growing = (store.folder / f".partial-{name}" for name in ("old", "new"))
    for path in (abandoned, growing, store.path(seeded.training_file)):
        path.write_bytes(b"x")
    past = time.time() - ABANDONED_SECONDS - 60
    for path in (abandoned, store.path(seeded.training_file)):
        os.utime(path, (past, past))
    assert sweep(database, store) == 0
    assert sorted(path.name for path in store.folder.iterdir()) == sorted([growing.name, seeded.training_file])

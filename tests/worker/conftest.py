"""A supervisor whose trainer is the fake one, and jobs that tell it what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from jenga_core.service.fleet.registration import Report
from jenga_core.service.settings import Settings
from tests.support.fleet import join_fleet
from tests.support.jobs import seed, submit_job
from worker.stop import Stop
from worker.supervisor import Supervisor

FAKE_TRAINER = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes import the code under test, installed or not."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")


@pytest.fixture
def stop() -> Iterator[Stop]:
    made = Stop()
    yield made
    made.close()


@pytest.fixture
def worker_id(database: Database) -> str:
    """A worker of the fleet with one CPU."""
    return join_fleet(database, Report("CPU-1", "cpu", "test", 2**33))


@pytest.fixture
def supervisor(settings: Settings, database: Database, stop: Stop, worker_id: str) -> Supervisor:
    return Supervisor(settings, database, stop, worker_id, command=FAKE_TRAINER, grace_seconds=1.0, tick_seconds=0.1)


@pytest.fixture
def submit(settings: Settings, database: Database) -> Callable[[str], str]:
    """Queue a job whose trainer behaves as told; return its id."""

    def queue(behaviour: str) -> str:
        row = f'{{"text": "{behaviour}"}}\n'.encode()
        return submit_job(database, seed(database, settings, rows=row))

    return queue


@pytest.fixture
def job(database: Database) -> Callable[[str], Job]:
    """The job's row as it is now."""

    def load(job_id: str) -> Job:
        with database.reading() as session:
            return session.get_one(Job, job_id)

    return load

"""Jobs of dead workers come back; silence is broken, but not by more doorbells than there are jobs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import queue
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from tests.support.fleet import gpus, join_fleet
from tests.support.jobs import force
from worker.reaper import RING_AGAIN_SECONDS, reap
from worker.supervisor import Supervisor


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ids: list[str] = []
    monkeypatch.setattr(queue, "ring", ids.append)
    monkeypatch.setattr(queue, "pending", lambda: 0)
    return ids


def make_silent(database: Database, job_id: str) -> None:
    with database.writing() as session:
        session.get_one(Job, job_id).rung_at = database_now() - RING_AGAIN_SECONDS - 1


def test_a_job_of_a_dead_worker_runs_again(
    settings: Settings,
    database: Database,
    supervisor: Supervisor,
    submit: Callable[[str], str],
    job: Callable[[str], Job],
    rung: list[str],
) -> None:
    job_id = submit("succeed")
    force(database, job_id, JobState.RUNNING, token="dead worker", lease=-1)
    rung.clear()
    reap(settings, database)
    assert (job(job_id).state, job(job_id).lease_token) == (JobState.QUEUED, None)
    assert rung == [job_id]
    assert supervisor.run_next() == job_id
    assert job(job_id).state == JobState.SUCCEEDED


def test_a_living_job_is_left_alone(
    settings: Settings, database: Database, submit: Callable[[str], str], job: Callable[[str], Job], rung: list[str]
) -> None:
    job_id = submit("succeed")
    force(database, job_id, JobState.RUNNING, token="alive", lease=60)
    rung.clear()
    reap(settings, database)
    assert (job(job_id).state, job(job_id).lease_token, rung) == (JobState.RUNNING, "alive", [])


def test_it_rings_again_once_per_interval(
    settings: Settings, database: Database, submit: Callable[[str], str], rung: list[str]
) -> None:
    silent, _fresh = submit("succeed"), submit("succeed")
    make_silent(database, silent)
    rung.clear()
    reap(settings, database)
    reap(settings, database)
    assert rung == [silent]


def test_it_does_not_ring_where_enough_bells_are_waiting(
    settings: Settings,
    database: Database,
    submit: Callable[[str], str],
    rung: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join_fleet(database, *gpus("A", "B", "C"))
    for _ in range(5):
        make_silent(database, submit("succeed"))
    rung.clear()
    monkeypatch.setattr(queue, "pending", lambda: 2)
    reap(settings, database)
    assert len(rung) == 1  # three devices are free, and two bells wait already


def test_a_full_fleet_hears_one_bell(
    settings: Settings, database: Database, submit: Callable[[str], str], rung: list[str]
) -> None:
    """Whoever hears it looks at all jobs."""
    for _ in range(3):
        make_silent(database, submit("succeed"))
    rung.clear()
    reap(settings, database)
    assert len(rung) == 1

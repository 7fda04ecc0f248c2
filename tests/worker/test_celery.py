"""A real Celery worker process, on both brokers: it runs jobs, survives them, and stops when told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, JobEvent
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import queue
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from tests.support import database as databases
from tests.support.broker import doorbell
from tests.support.jobs import force, seed, submit_job
from tests.support.processes import is_alive, until

ROOT = Path(__file__).parents[2]
START_SECONDS = 90


@pytest.fixture
def settings(tmp_path: Path, broker_url: str, migrated_database: Callable[[str], str]) -> Settings:
    url = databases.own(migrated_database("sqlite"), tmp_path)
    return Settings(data_dir=tmp_path / "data", database_url=url, broker_url=broker_url)


@pytest.fixture(autouse=True)
def _doorbell(settings: Settings) -> Iterator[None]:
    with doorbell(settings):
        yield


@contextmanager
def celery(settings: Settings, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process until the block ends; its log is shown when the test fails."""
    log = settings.folder() / "worker.log"
    environment = {
        **os.environ,
        "JENGA_DATA_DIR": str(settings.data_dir),
        "JENGA_DATABASE_URL": settings.database,
        "JENGA_BROKER_URL": settings.broker,
    }
    command = [sys.executable, "-m", "celery", "-A", "tests.worker.celery_app", "worker", "--loglevel", "INFO"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            print(log.read_text())


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    def happened() -> bool:
        assert process.poll() is None, "the worker has exited"
        return condition()

    until(happened, START_SECONDS)


def state_of(database: Database, job_id: str) -> JobState:
    with database.reading() as session:
        return JobState(session.get_one(Job, job_id).state)


def hangs(database: Database, job_id: str) -> bool:
    with database.reading() as session:
        said = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.message == "hanging")
        return session.scalars(said).first() is not None


def trainer_and_supervisor(settings: Settings, job_id: str) -> tuple[int, int]:
    """Process ids, as the fake trainer left them."""
    trainer, parent = (settings.folder("jobs", job_id) / "trainer.pid").read_text().split()
    return int(trainer), int(parent)


def test_a_worker_runs_jobs_survives_a_failure_and_gives_back_what_it_holds(
    settings: Settings, database: Database
) -> None:
    def submit(behaviour: str) -> str:
        return submit_job(database, seed(database, settings, rows=f'{{"text": "{behaviour}"}}\n'.encode()))

    with celery(settings, "-Q", queue.RUN_QUEUE, "-c", "1") as process:
        failing = submit("die, user_error")
        wait_for(process, lambda: state_of(database, failing) is JobState.FAILED)
        succeeding = submit("succeed")
        wait_for(process, lambda: state_of(database, succeeding) is JobState.SUCCEEDED)

        hanging = submit("hang")
        wait_for(process, lambda: hangs(database, hanging))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with database.reading() as session:
        back = session.get_one(Job, hanging)
    assert (back.state, back.attempt) == (JobState.QUEUED, 0)
    assert not is_alive(trainer_and_supervisor(settings, hanging)[0])


@pytest.mark.parametrize("victim", ["main", "pool"])
def test_a_worker_that_is_killed_leaves_no_orphan(settings: Settings, database: Database, victim: str) -> None:
    with celery(settings, "-Q", queue.RUN_QUEUE, "-c", "1") as process:
        hanging = submit_job(database, seed(database, settings, rows=b'{"text": "hang"}\n'))
        wait_for(process, lambda: hangs(database, hanging))
        trainer, supervisor = trainer_and_supervisor(settings, hanging)
        os.kill(process.pid if victim == "main" else supervisor, signal.SIGKILL)
        until(lambda: not is_alive(trainer) and not is_alive(supervisor))


def test_the_ops_worker_takes_back_lost_jobs_and_rings_again(settings: Settings, database: Database) -> None:
    """A job of a dead worker, and a job whose message was lost: both run once the two workers are up."""
    seeded = seed(database, settings, rows=b'{"text": "succeed"}\n')
    lost, silent = submit_job(database, seeded), submit_job(database, seeded)
    force(database, lost, JobState.RUNNING, token="dead worker", lease=-1)
    with database.writing() as session:
        session.get_one(Job, silent).rung_at = database_now() - 3600
    with queue.celery_app.connection_or_acquire() as connection:
        connection.default_channel.queue_purge(queue.RUN_QUEUE)
    with (
        celery(settings, "-Q", queue.RUN_QUEUE, "-c", "1") as runner,
        celery(settings, "-B", "-Q", queue.OPS_QUEUE, "-c", "1", "-n", "ops@%h"),
    ):
        for job_id in (lost, silent):
            wait_for(runner, lambda job_id=job_id: state_of(database, job_id) is JobState.SUCCEEDED)


@pytest.mark.parametrize(("options", "at_once"), [((), 3), (("-c", "2"), 2)], ids=["alone", "told"])
def test_it_runs_as_many_jobs_at_once_as_there_are_devices(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], at_once: int
) -> None:
    monkeypatch.setenv("JENGA_TEST_GPUS", "a,b,c")
    log = settings.folder() / "worker.log"
    with celery(settings, "-Q", queue.RUN_QUEUE, *options) as process:
        wait_for(process, lambda: f"concurrency: {at_once} (prefork)" in log.read_text())

"""Databases that go away, supervisors that freeze, clocks that jump."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.stack import BACKENDS, LEASE_SECONDS, kill, running
from tests.support.processes import is_alive, until

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_database_that_is_restarted_under_load_loses_nothing(how: signal.Signals, tmp_path: Path) -> None:
    with running("postgresql", tmp_path) as stack:
        assert stack.postgres is not None
        jobs = [stack.submit() for _ in range(8)]
        for seconds in (0.0, LEASE_SECONDS / 2, 2 * LEASE_SECONDS):  # shorter and longer than a lease
            until(lambda: stack.trainers() != [], 60)
            stack.postgres.kill(how)
            time.sleep(seconds)
            stack.postgres.start()
        stack.mend()
        until(lambda: stack.ended(jobs), 240)
        stack.verify(jobs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_supervisor_that_freezes_past_its_lease_changes_nothing_later(backend: str, tmp_path: Path) -> None:
    with running(backend, tmp_path) as stack:
        jobs = [stack.submit() for _ in range(4)]
        until(lambda: len(stack.trainers()) == 4, 60)
        frozen = stack.supervisors()[0]
        trainer = _trainer_of(frozen)
        kill(frozen, signal.SIGSTOP)
        until(lambda: not is_alive(trainer), 5 * LEASE_SECONDS)  # before anybody else can start the job
        until(lambda: any("worker lost" in " ".join(stack.messages(job)) for job in jobs), 60)
        until(lambda: stack.ended(jobs), 120)
        before = [stack.messages(job) for job in jobs]
        kill(frozen, signal.SIGCONT)
        time.sleep(2 * LEASE_SECONDS)
        assert [stack.messages(job) for job in jobs] == before
        stack.verify(jobs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_host_whose_wall_clock_jumps_an_hour_keeps_its_jobs(backend: str, tmp_path: Path) -> None:
    with running(backend, tmp_path) as stack:
        jobs = [stack.submit() for _ in range(6)]
        until(lambda: len(stack.trainers()) == 4, 60)
        for wrong_by in (3600, -3600):
            stack.clock_file("h1").write_text(str(wrong_by))
            time.sleep(2 * LEASE_SECONDS)
            jobs.append(stack.submit())
        until(lambda: stack.ended(jobs), 180)
        stack.verify(jobs)
        assert [stack.job(job).attempt for job in jobs] == [1] * len(jobs)


def _trainer_of(supervisor: int) -> int:
    (trainer,) = psutil.Process(supervisor).children()
    return trainer.pid

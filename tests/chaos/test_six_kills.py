"""Six kills, one after the other, each at a moment that is waited for: what every change of the worker must survive."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.chaos.stack import BACKENDS, Stack, kill, running
from tests.support.processes import is_alive, until


def step_of(stack: Stack, job_id: str) -> int:
    return stack.job(job_id).step


@pytest.mark.parametrize("backend", BACKENDS)
def test_six_kills(backend: str, tmp_path: Path) -> None:
    with running(backend, tmp_path) as stack:
        jobs = [stack.submit() for _ in range(4)]
        until(lambda: all(step_of(stack, job) >= 1 for job in jobs), 90)

        trainers = stack.trainers()
        kill(trainers[0])  # 1: a trainer
        until(lambda: trainers[0] not in stack.trainers(), 30)

        kill(stack.supervisors()[0])  # 2: a supervisor
        stack.api.kill()  # 3: the API
        stack.mend()

        stack.broker.kill()  # 4: the broker, with a job that is submitted while it is away
        jobs.append(stack.submit())
        stack.mend()

        stack.workers["h1"].kill()  # 5: a host's Celery worker
        forks = [child.pid for child in psutil.Process(stack.ops.pid).children()]
        stack.ops.kill()  # 6: the clock and the reaper
        until(lambda: not any(map(is_alive, forks)), 30)
        jobs.append(stack.submit())
        stack.mend()

        until(lambda: stack.ended(jobs), 180)
        until(stack.api_answers, 60)
        stack.verify(jobs)

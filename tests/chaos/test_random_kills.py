"""Fifty kills at random moments, of whatever there is to kill, while jobs keep coming."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.chaos.stack import BACKENDS, Stack, kill, running
from tests.support.processes import until

KILLS = 50
JOBS = 20

pytestmark = pytest.mark.chaos


def kill_one(stack: Stack, chance: random.Random) -> str:
    """Kill something; return what."""
    victim = chance.choice(["trainer", "trainer", "supervisor", "supervisor", "worker", "broker", "api", "ops"])
    match victim:
        case "trainer" | "supervisor":
            pids = stack.trainers() if victim == "trainer" else stack.supervisors()
            if pids:
                kill(chance.choice(pids))
        case "worker":
            process = chance.choice(list(stack.workers.values()))
            if process.is_running():
                process.kill()
        case _:
            process = {"broker": stack.broker, "api": stack.api, "ops": stack.ops}[victim]
            if process.is_running():
                process.kill()
    return victim


@pytest.mark.parametrize("backend", BACKENDS)
def test_fifty_random_kills(backend: str, tmp_path: Path) -> None:
    chance = random.Random(20261124)
    jobs: list[str] = []
    with running(backend, tmp_path) as stack:
        for number in range(KILLS):
            if number % (KILLS // JOBS) == 0 and len(jobs) < JOBS:
                jobs.append(stack.submit())
            time.sleep(chance.uniform(0.3, 3.0))
            print(number, kill_one(stack, chance), flush=True)
            if chance.random() < 0.7:
                stack.mend()
        stack.mend()
        until(lambda: stack.ended(jobs), 400)
        until(stack.api_answers, 60)
        stack.verify(jobs)
        print("attempts", [stack.job(job).attempt for job in jobs])

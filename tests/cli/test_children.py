"""Child processes are restarted a bounded number of times, and nothing of them is left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.children import MAX_RESTARTS, Child, ChildDiedError
from tests.support.processes import until

SLEEPS = "import time; time.sleep(60)"
FORKS = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
FAILS = "import sys; sys.exit('no luck')"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    made: list[Child] = []

    def child(source: str, stop_seconds: float = 10) -> Child:
        argv = [sys.executable, "-c", source]
        made.append(Child("child", argv, tmp_path / "child.log", os.environ, tmp_path, stop_seconds))
        made[-1].start()
        return made[-1]

    yield child
    for child_made in made:
        child_made.stop()


def test_a_dead_child_is_told_with_its_exit_code_and_the_end_of_its_log(make: Callable[[str], Child]) -> None:
    child = make(FAILS)
    until(lambda: not _alive(child))
    with pytest.raises(ChildDiedError, match=r"exit code 1(.|\n)*no luck"):
        child.check()


def test_restarts_are_bounded(make: Callable[[str], Child]) -> None:
    child, restarts = make(FAILS), 0

    def gave_up() -> bool:
        nonlocal restarts
        try:
            restarts += child.keep_alive() is not None
        except ChildDiedError:
            return True
        return False

    until(gave_up)
    assert restarts == MAX_RESTARTS


def test_a_living_child_is_left_alone(make: Callable[[str], Child]) -> None:
    child = make(SLEEPS)
    assert child.keep_alive() is None


def test_what_a_dead_child_forked_dies_before_it_is_restarted(make: Callable[[str], Child], tmp_path: Path) -> None:
    child = make(FORKS)
    forked = _first_line(tmp_path / "child.log")
    assert child._process is not None
    child._process.kill()
    until(lambda: child.keep_alive() is not None)
    until(lambda: not psutil.pid_exists(int(forked)))


def test_stop_kills_a_child_that_ignores_sigterm(make: Callable[..., Child], tmp_path: Path) -> None:
    child = make(DEAF, stop_seconds=0.2)
    assert _first_line(tmp_path / "child.log") == "deaf"
    process = child._process
    assert process is not None
    child.stop()
    assert process.returncode == -9


def _alive(child: Child) -> bool:
    assert child._process is not None
    return child._process.poll() is None


def _first_line(path: Path) -> str:
    until(lambda: path.exists() and "\n" in path.read_text())
    return path.read_text().splitlines()[0]

"""A trainer lives as long as its lease: renewed it goes on, unrenewed the kernel ends it, orphaned it ends itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from worker import watchdog
from worker.watchdog import LEASE_FD_VARIABLE

CODE = """
import time
from worker import watchdog
print("begun", flush=True)
input()
watchdog.watch()
print("watching", flush=True)
time.sleep(60)
"""


class Watched:
    """A process that watches; it begins to when told."""

    def __init__(self) -> None:
        reader, self.lease = os.pipe()
        os.set_blocking(self.lease, False)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[reader],
            env={**os.environ, LEASE_FD_VARIABLE: str(reader)},
        )
        os.close(reader)
        self.read()

    def read(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.read() == b"watching"


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.process.kill()
    made.process.wait()
    with suppress(OSError):
        os.close(made.lease)
    for pipe in (made.process.stdin, made.process.stdout):
        assert pipe is not None
        pipe.close()


def test_it_ends_when_nobody_renews(watched: Watched) -> None:
    watchdog.tell(watched.lease, time.monotonic() + 600)
    watched.begin()
    watchdog.tell(watched.lease, time.monotonic() + 0.2)
    assert watched.process.wait(30) == -signal.SIGALRM


def test_it_goes_on_when_the_newest_line_says_so(watched: Watched) -> None:
    """A start that takes longer than a lease finds old lines before the one that counts."""
    for ends in (-10.0, -5.0, 600.0):
        watchdog.tell(watched.lease, time.monotonic() + ends)
    watched.begin()
    with pytest.raises(subprocess.TimeoutExpired):
        watched.process.wait(1)


def test_it_ends_with_its_supervisor(watched: Watched) -> None:
    watchdog.tell(watched.lease, time.monotonic() + 600)
    watched.begin()
    os.close(watched.lease)
    assert watched.process.wait(30) == -signal.SIGKILL


def test_a_frozen_process_ends_as_soon_as_it_wakes(watched: Watched) -> None:
    watched.begin()
    watchdog.tell(watched.lease, time.monotonic() + 1)
    time.sleep(0.3)  # it has read that
    watched.process.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    watched.process.send_signal(signal.SIGCONT)
    assert watched.process.wait(30) == -signal.SIGALRM


def test_who_has_ended_or_does_not_read_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for _ in range(20_000):
        watchdog.tell(writer, 12345.678901)
    assert "does not read its lease" in caplog.text
    os.close(reader)
    watchdog.tell(writer, 1.0)
    os.close(writer)

"""The pipe's rough edges: long lines, pieces, an early end; and what is left of the log."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import until
from worker.child import Child

WRITE = "import os, sys, time; w = os.fdopen(int(os.environ['JENGA_EVENTS_FD']), 'w', buffering=1); "
Start = Callable[[str], Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    children: list[Child] = []

    def run(code: str) -> Child:
        children.append(Child((sys.executable, "-c", WRITE + code), tmp_path))
        return children[-1]

    yield run
    for child in children:
        child.end()


def lines_of(child: Child) -> list[bytes]:
    lines = []
    while child.is_running():
        lines += child.read(1.0)
    child.end()
    return lines + child.rest()


def test_lines_come_whole_whatever_the_pieces(start: Start) -> None:
    code = "w.write('a' * 300_000); w.flush(); time.sleep(0.1); w.write('b\\nc\\n\\nd')"
    assert lines_of(start(code)) == [b"a" * 300_000 + b"b", b"c", b"d"]


def test_a_line_without_end_is_handed_on_in_pieces(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.child.MAX_LINE_BYTES", 1000)
    child = start("w.write('a' * 100_000); time.sleep(60)")
    pieces: list[bytes] = []
    until(lambda: bool(pieces.extend(child.read(0.1)) or sum(map(len, pieces)) == 100_000))
    assert b"".join(pieces) == b"a" * 100_000


def test_the_exit_code_tells_the_signal(start: Start) -> None:
    child = start("time.sleep(60)")
    child.signal(signal.SIGKILL)
    assert lines_of(child) == []
    assert child.end() == -signal.SIGKILL


def test_the_log_tail_is_this_attempts(start: Start) -> None:
    lines_of(start("print('first attempt')"))
    second = start("[print(n) for n in range(100)]; sys.exit('the reason')")
    lines_of(second)
    assert second.log_tail(lines=3) == "98\n99\nthe reason"
    assert "first" not in second.log_tail(lines=1000)


def test_hugging_face_stays_offline(start: Start) -> None:
    assert lines_of(start("w.write(os.environ['HF_HUB_OFFLINE'])")) == [b"1"]


def test_a_closed_pipe_is_not_an_exit(start: Start) -> None:
    child = start("w.close(); time.sleep(60)")
    until(lambda: child.read(0.05) == [] and child._closed)
    assert child.read(0.05) == []
    assert child.is_running()

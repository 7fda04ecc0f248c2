"""The trainer as a child process, the pipe on which it talks, and the one on which it hears how long it may live.

A fresh process (never a fork of this one, which CUDA forbids) that leads its own session, so that one signal reaches
it and all its helpers. When the supervisor dies, however it dies, the kernel kills the trainer (PR_SET_PDEATHSIG): no
orphan keeps a GPU. To the kernel the parent is the thread that started the trainer, so that thread must stay with it.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from jenga_core.service.processes import dies_with_this
from worker import watchdog
from worker.protocol import EVENTS_FD_VARIABLE, FINISH_SIGNAL
from worker.watchdog import LEASE_FD_VARIABLE

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is handed on in pieces, none of which will be a message."""

READ_BYTES = 2**20

LOG_BYTES = 8 * 2**20
"""When what a trainer printed is longer, it becomes `stderr.log.1` and a new file begins."""


def _before_exec(dies_with_parent: Callable[[], None]) -> Callable[[], None]:
    def prepare() -> None:
        dies_with_parent()
        signal.pthread_sigmask(signal.SIG_BLOCK, [FINISH_SIGNAL])

    return prepare


class Child:
    """A running trainer. `end()` must be called, whatever happens."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        lease_ends: float | None = None,
    ) -> None:
        """Start `command --job-dir folder`; what it prints goes to `folder/stderr.log`.

        It dies at `lease_ends` (time.monotonic()) unless `renewed` puts that off; None lets it live.
        """
        self._log = folder / "stderr.log"
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._reader, writer = os.pipe()
        lease_reader, self._lease = os.pipe()
        os.set_blocking(self._lease, False)
        if lease_ends is not None:
            watchdog.tell(self._lease, lease_ends)
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*command, "--job-dir", str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={
                        # OpenMP threads that spin while they wait make a step on a busy CPU many times slower.
                        "OMP_WAIT_POLICY": "PASSIVE",
                        **os.environ,
                        "HF_HUB_OFFLINE": "1",
                        "PYTHONUNBUFFERED": "1",
                        **(environment or {}),
                        EVENTS_FD_VARIABLE: str(writer),
                        LEASE_FD_VARIABLE: str(lease_reader),
                    },
                    pass_fds=(writer, lease_reader),
                    start_new_session=True,
                    preexec_fn=_before_exec(dies_with_this(signal.SIGKILL)),
                )
        except BaseException:
            os.close(self._reader)
            os.close(self._lease)
            raise
        finally:
            os.close(writer)
            os.close(lease_reader)
        os.set_blocking(self._reader, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ)
        self._buffer = b""
        self._closed = False

    @property
    def pid(self) -> int:
        """Process id, and id of the process group."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the trainer itself lives; helpers it left behind do not count."""
        return self._process.poll() is None

    def read(self, timeout_seconds: float) -> list[bytes]:
        """Complete lines that have come; waits for some, for an exit, or for the timeout."""
        if not self._closed:
            self._selector.select(timeout_seconds)
            self._fill()
            return self._lines()
        with suppress(subprocess.TimeoutExpired):  # it closed the pipe and works on
            self._process.wait(timeout_seconds)
        return []

    def renewed(self, lease_ends: float) -> None:
        """The lease holds until then, by time.monotonic()."""
        watchdog.tell(self._lease, lease_ends)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the trainer and its helpers."""
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self._process.pid, number)

    def end(self) -> int:
        """Kill what is left of the group and reap; return the exit code, negative for a signal. Safe to call twice."""
        self.signal(signal.SIGKILL)
        return self._process.wait()

    def rest(self) -> list[bytes]:
        """After `end()`: the last lines, an unfinished one included; closes the pipe."""
        for _ in range(64):  # a helper that escaped the group might write for ever
            if not self._fill():
                break
        self._selector.close()
        os.close(self._reader)
        os.close(self._lease)
        lines = self._lines()
        return [*lines, self._buffer] if self._buffer.strip() else lines

    def rotate_log(self) -> None:
        """Keep what was printed below twice LOG_BYTES. The trainer appends, so the file can be emptied under it."""
        if self._log.stat().st_size > LOG_BYTES:
            shutil.copyfile(self._log, self._log.with_suffix(".log.1"))
            os.truncate(self._log, 0)
            self._log_start = 0

    def log_tail(self, lines: int = 20, size_bytes: int = 4000) -> str:
        """The last lines that this process printed."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - size_bytes))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])

    def _fill(self) -> int:
        """Move what lies in the pipe into the buffer, at most about READ_BYTES; return how much that was."""
        read = 0
        while read < READ_BYTES and not self._closed:
            try:
                chunk = os.read(self._reader, 2**16)
            except BlockingIOError:
                break
            read += len(chunk)
            self._buffer += chunk
            if not chunk:
                self._closed = True
                self._selector.unregister(self._reader)
        return read

    def _lines(self) -> list[bytes]:
        """Take the complete lines out of the buffer."""
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > MAX_LINE_BYTES:
            lines, self._buffer = [*lines, self._buffer], b""
        return [line for line in lines if line.strip()]

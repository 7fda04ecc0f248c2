"""The processes that `jenga up` starts: each is kept alive, watched and, at the end, surely gone.

A child leads its own session: a Ctrl-C in the terminal reaches only `jenga up`, which stops its children in order, and
the child's process group holds everything it forked. On Linux the kernel sends it SIGTERM if `jenga up` itself dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jenga_core.errors import JengaError
from jenga_core.service.processes import dies_with_this

MAX_RESTARTS = 3
RESTART_WINDOW_SECONDS = 600.0
"""A child that dies more often than MAX_RESTARTS within the window stops the service."""


class ChildDiedError(JengaError):
    """A child ended on its own, and starting it again is not (or no longer) the answer."""

    code = "child_died"


@dataclass
class Child:
    """One long-running process and its log file."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    cwd: Path
    stop_seconds: float
    """From SIGTERM to SIGKILL."""
    pass_fds: tuple[int, ...] = ()
    _process: subprocess.Popen[bytes] | None = None
    _restarts: deque[float] = field(default_factory=deque)

    def start(self) -> None:
        """Start it; output is appended to the log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                cwd=self.cwd,
                pass_fds=self.pass_fds,
                start_new_session=True,
                preexec_fn=dies_with_this(signal.SIGTERM),  # safe: this process has one thread
            )

    def check(self) -> None:
        """Raise ChildDiedError, with the end of its log, if it is not running."""
        if self._process is None or self._process.poll() is None:
            return
        self._kill_group(self._process)
        raise ChildDiedError(
            f"{self.name} ended with exit code {self._process.returncode}. The end of {self.log}:\n{tail(self.log)}"
        )

    def keep_alive(self) -> str | None:
        """Start it again if it died, and say so. Raises ChildDiedError when it died too often."""
        try:
            self.check()
        except ChildDiedError as death:
            now = time.monotonic()
            while self._restarts and now - self._restarts[0] > RESTART_WINDOW_SECONDS:
                self._restarts.popleft()
            if len(self._restarts) >= MAX_RESTARTS:
                raise
            self._restarts.append(now)
            self.start()
            return f"{death.message}\n{self.name} was started again (time {len(self._restarts)} of {MAX_RESTARTS})"
        return None

    def stop(self) -> None:
        """SIGTERM, wait, then SIGKILL for whatever is left of its group. Stopping twice is fine."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.stop_seconds)
        self._kill_group(process)
        process.wait()

    @staticmethod
    def _kill_group(process: subprocess.Popen[bytes]) -> None:
        """What the child forked dies with it; an empty group (on macOS: with a dead leader) is no error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def tail(path: Path, *, lines: int = 20) -> str:
    """The last lines of a log."""
    if not path.exists():
        return "(no log)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

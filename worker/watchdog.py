"""The trainer's own watch over its lease: it must never train, and write, for a job that is somebody else's by now.

The supervisor writes, on a pipe, until when its lease certainly holds, by the clock that both of them read
(CLOCK_MONOTONIC). The trainer sets the kernel's alarm to that moment, and again at every renewal; when none comes,
because the supervisor is frozen or cut off from the database, SIGALRM kills the trainer, whatever it is doing. An end
of file means that the supervisor is dead, and ends the trainer at once; on Linux the parent-death signal is faster.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

LEASE_FD_VARIABLE = "JENGA_LEASE_FD"
"""Environment variable with the number of the pipe's reading end."""

SHORTEST_SECONDS = 0.001

log = logging.getLogger(__name__)


def watch() -> None:
    """Start watching the pipe of LEASE_FD_VARIABLE, if there is one: a trainer that a person starts has none."""
    number = os.environ.get(LEASE_FD_VARIABLE)
    if number is None:
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which kills
    threading.Thread(target=_obey, args=(int(number),), name="lease", daemon=True).start()


def _obey(reader: int) -> None:
    """Only the newest line counts: while a trainer starts, several gather."""
    rest = b""
    while chunk := os.read(reader, 2**16):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            signal.setitimer(signal.ITIMER_REAL, max(float(lines[-1]) - time.monotonic(), SHORTEST_SECONDS))
    os.kill(os.getpid(), signal.SIGKILL)


def tell(writer: int, ends: float) -> None:
    """The supervisor's side. A trainer that does not read is not waited for: its alarm is set already."""
    try:
        os.write(writer, f"{ends}\n".encode())
    except BlockingIOError:
        log.warning("a trainer does not read its lease")
    except BrokenPipeError:
        return  # it has just ended

"""One bit, "this worker is shutting down", that crosses a fork.

Celery tells only its main process that a SIGTERM came; the pool process that runs a job is a fork of it. Both hold the
same pipe: the main process writes a byte that nobody reads, so the pipe stays readable for all forks. A fork that
closed its own writing end also sees the end of file when the main process is killed.
"""

from __future__ import annotations

import os
import select


class Stop:
    """Set once, never cleared."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def set(self) -> None:
        """Ask everybody who shares this to stop. Safe in a signal handler."""
        os.write(self._writer, b".")

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most so long; True when it is."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def is_set(self) -> bool:
        """Whether it was set, or its main process has died."""
        return self.wait(0)

    def only_listen(self) -> None:
        """In a fork: let go of the writing end, so that the main process's death can be seen."""
        os.close(self._writer)

    def close(self) -> None:
        """Release both ends."""
        os.close(self._reader)
        os.close(self._writer)

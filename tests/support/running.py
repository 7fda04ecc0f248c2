"""A supervisor that runs beside the test."""

from __future__ import annotations

import threading

from worker.supervisor import Supervisor


class Running:
    """A supervisor at work in a thread, so that the test can interfere."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.ran: list[str] = []
        self._thread = threading.Thread(target=lambda: self.ran.extend(supervisor.drain()))
        self._thread.start()

    def join(self) -> list[str]:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.ran

"""From a wish in the database to a process that does it: one step at a time, each an event of the job.

    pause, cancel, shut down, give way   SIGTERM; GRACE_SECONDS later, if the trainer is still there, SIGKILL
    finish now                           SIGUSR1; what follows is the trainer's ordinary end

A trainer answers at its next step boundary. One that is killed loses the steps since its last checkpoint, not the job.
"""

from __future__ import annotations

import signal
import time

from jenga_core.service.jobs.lifecycle import Wishes
from jenga_core.service.jobs.state import JobState
from worker.child import Child
from worker.protocol import FINISH_SIGNAL, EventMessage, Message

GRACE_SECONDS = 20.0
"""A pause frees the devices within 30 seconds: this, a tick, and what it takes to notice and to reap."""


class Ladder:
    """How far one trainer has been pressed."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.grace_seconds = grace_seconds
        self._asked_at: float | None = None
        self.killed = False
        """It was killed, because it did not leave."""
        self._told_to_finish = False

    @property
    def asked(self) -> bool:
        """The trainer was asked to leave."""
        return self._asked_at is not None

    def climb(self, child: Child, wishes: Wishes, *, shutting_down: bool) -> list[Message]:
        """Take the step that is due, if one is; return what to tell."""
        leave = wishes.state in (JobState.PAUSING, JobState.CANCELLING) or wishes.give_way or shutting_down
        if leave and self._asked_at is None:
            self._asked_at = time.monotonic()
            child.signal(signal.SIGTERM)
            return [_warning("The trainer was asked to stop (SIGTERM)")]
        if self._asked_at is not None:
            if not self.killed and time.monotonic() > self._asked_at + self.grace_seconds:
                self.killed = True
                child.signal(signal.SIGKILL)
                return [_warning(f"The trainer did not stop within {self.grace_seconds:g} s and was killed (SIGKILL)")]
        elif wishes.finish and not self._told_to_finish:
            self._told_to_finish = True
            child.signal(FINISH_SIGNAL)
            return [_warning("The trainer was asked to finish with what is trained (SIGUSR1)")]
        return []


def _warning(message: str) -> EventMessage:
    return EventMessage(level="warn", message=message)

"""The job's two enums and the table of allowed moves. Standard library only.

`state` answers who may act on a job, `stage` how far its work is. A move that is not in ALLOWED is a bug of ours or a
conflict with somebody who was first; `lifecycle` is the only writer and refuses it either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class JobState(StrEnum):
    """Who may act."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Nothing more will happen."""
        return not ALLOWED[self]

    @property
    def is_held(self) -> bool:
        """A supervisor holds a lease on the job."""
        return self in (JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING)


class JobStage(StrEnum):
    """How far. One file each in worker/stages, run in this order."""

    VALIDATE = "validate"
    PREPARE = "prepare"
    CALIBRATE = "calibrate"
    TRAIN_PREDICTORS = "train_predictors"
    FINETUNE = "finetune"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


_S = JobState
ALLOWED: Mapping[JobState, frozenset[JobState]] = {
    # claimed | cancelled or paused before it ran
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED, _S.PAUSED}),
    # requeued after its trainer died | asked to stop | ended
    _S.RUNNING: frozenset({_S.QUEUED, _S.PAUSING, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}),
    # saved and let go | cancelled meanwhile | ended before the request was seen
    _S.PAUSING: frozenset({_S.PAUSED, _S.CANCELLING, _S.SUCCEEDED, _S.FAILED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    # stopped | ended before the request was seen
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.SUCCEEDED, _S.FAILED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
"""From -> to."""

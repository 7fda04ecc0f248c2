"""What the supervisor and the trainer say to each other.

Downwards: one JSON file, `TrainerSpec`, in the job's folder. Upwards: one JSON object per line on a pipe, each a
`Message`. The supervisor relays them into the database under its lease; the trainer knows no database. Nothing here
imports torch, so a fake trainer in a test can speak the real protocol.

Signals: SIGTERM asks the trainer to save at the next step boundary and leave, SIGUSR1 to train no further but to
evaluate and publish what there is. A trainer is started with SIGUSR1 blocked and unblocks it when it has a handler, so
that one sent early is neither lost nor deadly.

Layout of a job's folder (`DATA_DIR/jobs/<job id>`):

    spec.json            the TrainerSpec
    stderr.log           what the trainer printed
    cache/               encoded training data; gone when the job has ended
    checkpoints/         states to go on from (jenga_core/finetuning/checkpoints.py)
    output/              adapter/, adapter.tar.gz, metrics.csv
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jenga_core.config import JengaConfig
from jenga_core.service.jobs.state import JobStage

EVENTS_FD_VARIABLE = "JENGA_EVENTS_FD"
"""Environment variable with the number of the pipe's writing end."""

FINISH_SIGNAL = signal.SIGUSR1

EXIT_OK = 0
EXIT_USER_ERROR = 10
"""The trainer raised: its last message is an ErrorMessage. Not retried."""
EXIT_OUT_OF_MEMORY = 11
"""CUDA or host memory ran out: an ErrorMessage with the numbers. Not retried."""
EXIT_STOPPED = 12
"""It saved at a step boundary and left because SIGTERM asked it to."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainerSpec(_Frozen):
    """Everything the trainer needs, in paths and numbers."""

    job_id: str
    attempt: int
    model_name: str
    model_folder: Path
    fingerprint: str
    """Of the base model."""
    predictors_folder: Path
    """Holds the team's predictors for this base model, a folder for each kind of settings."""
    training_path: Path
    validation_path: Path | None
    config: JengaConfig
    hyperparameters: dict[str, Any]
    """OpenAI's: n_epochs, batch_size, learning_rate_multiplier; "auto" or a number."""
    seed: int
    checkpoints: list[Path] = []
    """Folders of states to go on from, newest first; the first that is whole is used, none starts at step 0."""
    gpus: int = 1
    """Devices it trains on."""
    finish: bool = False
    """Train no further than the checkpoint is; evaluate and publish."""


class StageMessage(_Frozen):
    """A stage begins."""

    kind: Literal["stage"] = "stage"
    stage: JobStage


class EventMessage(_Frozen):
    """Something to tell the people who watch."""

    kind: Literal["event"] = "event"
    message: str
    level: Literal["info", "warn", "error"] = "info"
    data: dict[str, Any] | None = None


class PlanMessage(_Frozen):
    """What the data turned out to be; sent once the number of steps is known."""

    kind: Literal["plan"] = "plan"
    total_steps: int
    hyperparameters: dict[str, Any]
    """With every "auto" resolved."""


class StepMessage(_Frozen):
    """An optimizer step is done (train_*), or held-out loss was measured after it (valid_loss). Step 0 is before
    training."""

    kind: Literal["step"] = "step"
    step: int
    train_loss: float | None = None
    valid_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    trained_tokens: int | None = None
    """Tokens seen by the forward pass since the job began."""


class MemoryMessage(_Frozen):
    """Bytes of one phase; the fields are those of the job_memory table."""

    kind: Literal["memory"] = "memory"
    phase: str
    states_bytes: int
    activation_bytes: int
    predictor_bytes: int
    other_bytes: int
    peak_bytes: int
    device: str


class SelectionMessage(_Frozen):
    """Which blocks stayed involved at a step, in the first sequence of the batch."""

    kind: Literal["selection"] = "selection"
    step: int
    entry_layer: int
    """The layer that chose; with a set for each layer, the first that does."""

    num_blocks: int
    layers_kept_fraction: list[float]
    spans: list[dict[str, Any]]
    """[{"first_layer": 15, "last_layer": 29, "blocks": [0, 3, ...]}]; layers in no span keep all."""


class PredictorMessage(_Frozen):
    """There are predictors for the job's model and settings, complete on disk; sent once."""

    kind: Literal["predictor"] = "predictor"
    folder: str
    """Name under `TrainerSpec.predictors_folder`."""
    reused: bool
    """An earlier job made them."""
    settings: dict[str, Any]
    """What they depend on beside the base model."""
    report: dict[str, Any]
    """parameters, parameter_fraction of the base model, and by layer: recall, precision and more."""


class CheckpointMessage(_Frozen):
    """A checkpoint is complete on disk."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    folder: str
    """Name under `checkpoints/`."""
    metrics: dict[str, float]


class ResultMessage(_Frozen):
    """The job's outcome: `output/` is complete. Sent once, before exit code 0."""

    kind: Literal["result"] = "result"
    report: dict[str, Any]
    """What the method did: score source, held-out loss before and after, kept fractions, warnings."""


class ErrorMessage(_Frozen):
    """Why the job fails; last message before a non-zero exit code."""

    kind: Literal["error"] = "error"
    code: str
    message: str
    param: str | None = None
    peak_bytes: int | None = None
    """Of an `out_of_memory`: the most that was allocated."""


Message = Annotated[
    StageMessage
    | EventMessage
    | PlanMessage
    | StepMessage
    | MemoryMessage
    | SelectionMessage
    | PredictorMessage
    | CheckpointMessage
    | ResultMessage
    | ErrorMessage,
    Field(discriminator="kind"),
]

message_adapter: TypeAdapter[Message] = TypeAdapter(Message)

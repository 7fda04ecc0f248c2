"""The job as the trainer's stages see it: what was asked, what earlier stages made, and the way to tell the supervisor.

Each stage reads what it needs from here and leaves what it made; their order is that of JobStage.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from jenga_core.finetuning.data import Encoded, PadRight, collator
from jenga_core.finetuning.dense_reference import DenseReference
from jenga_core.finetuning.evaluation import HeldOut
from jenga_core.finetuning.parallel import ALONE, Ranks
from jenga_core.finetuning.trainer import Finished, Plan
from jenga_core.patching.apply import JengaHandle
from jenga_core.prediction.store import Stored
from worker.protocol import (
    ErrorMessage,
    EventMessage,
    Message,
    TrainerSpec,
)


class Stopped(Exception):
    """SIGTERM asked the trainer to leave, and it is at a point where it can."""


class Reporter:
    """Writes messages to the supervisor's pipe, one JSON object a line; one that is `quiet` only says why it fails."""

    def __init__(self, descriptor: int, *, quiet: bool = False) -> None:
        self._pipe: BinaryIO = os.fdopen(descriptor, "wb", buffering=0)
        self._quiet = quiet

    def send(self, message: Message) -> None:
        """Blocks when the pipe is full; a closed pipe means the supervisor is gone, and ends the process."""
        if self._quiet and not isinstance(message, ErrorMessage):
            return
        self._pipe.write(message.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """The supervisor reads to the end of the pipe."""
        self._pipe.close()

    def event(self, message: str, *, level: Any = "info", data: dict[str, Any] | None = None) -> None:
        """Something to tell the people who watch."""
        self.send(EventMessage(message=message, level=level, data=data))


@dataclass
class TrainingJob:
    """One attempt at one job."""

    spec: TrainerSpec
    folder: Path
    reporter: Reporter
    device: torch.device
    ranks: Ranks = ALONE
    stop_requested: bool = False
    """Save at the next step and leave (SIGTERM)."""

    finish_requested: bool = False
    """Train no further (SIGUSR1)."""

    resume_from: Path | None = None
    """The checkpoint to go on from."""

    warnings: list[str] = field(default_factory=list)

    # Left by the stages, in this order.
    tokenizer: PreTrainedTokenizerBase | None = None
    training: Encoded | None = None
    validation: Encoded | None = None
    plan: Plan | None = None
    model: PeftModel | None = None
    handle: JengaHandle | None = None
    held_out_before: HeldOut | None = None
    predictors: Stored | None = None
    activation_bytes: int | None = None
    """What the first micro-batch saved for backward."""

    dense: DenseReference | None = None
    """What that takes densely."""

    finished: Finished | None = None
    held_out_after: HeldOut | None = None

    @property
    def output_folder(self) -> Path:
        """What the job publishes."""
        return self.folder / "output"

    @property
    def checkpoint_folder(self) -> Path:
        """States to go on from."""
        return self.folder / "checkpoints"

    @property
    def cache_folder(self) -> Path:
        """Encoded data, of this rank."""
        return self.folder / "cache" / (f"rank-{self.ranks.rank}" if self.ranks.rank else ".")

    def collate(self) -> PadRight:
        """Sequences to a batch."""
        assert self.tokenizer is not None
        return collator(self.tokenizer)

    def warn(self, message: str) -> None:
        """Tell the watchers, and keep it for the report."""
        self.warnings.append(message)
        self.reporter.event(message, level="warn")

    def leave_if_asked(self) -> None:
        """Raise Stopped when SIGTERM came."""
        if self.stop_requested:
            raise Stopped

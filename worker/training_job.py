"""The job as the trainer's stages see it: what was asked, what earlier stages made, and the way to tell the supervisor.

Each stage reads what it needs from here and leaves what it made; their order is that of JobStage.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from jenga_core.errors import JengaError
from jenga_core.finetuning.data import Encoded, PadRight, collator
from jenga_core.finetuning.dense_reference import DenseReference
from jenga_core.finetuning.evaluation import HeldOut
from jenga_core.finetuning.parallel import ALONE, Ranks
from jenga_core.finetuning.trainer import Finished, Plan
from jenga_core.patching.apply import JengaHandle
from jenga_core.patching.report import JengaReport
from jenga_core.prediction.store import Stored
from worker import resume_state
from worker.protocol import (
    CheckpointMessage,
    ErrorMessage,
    EventMessage,
    Message,
    SelectionMessage,
    StepMessage,
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
    dense: DenseReference | None = None
    held_out_before: HeldOut | None = None
    predictors: Stored | None = None
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


class JobWatcher:
    """Relays the training run's progress (a finetuning.trainer.Watcher)."""

    def __init__(self, job: TrainingJob, selections_every_steps: int) -> None:
        self.job = job
        self.selections_every_steps = selections_every_steps
        self.last_loss = math.nan

    def step_done(
        self, step: int, *, train_loss: float, learning_rate: float, tokens_per_second: float, trained_tokens: int
    ) -> None:
        """Send the step, and now and then which blocks were kept."""
        if not math.isfinite(train_loss):
            raise JengaError(
                f"the loss is {train_loss} at step {step}; lower learning_rate or look at the rows around it",
                code="loss_diverged",
            )
        self.last_loss = train_loss
        self.job.reporter.send(
            StepMessage(
                step=step,
                train_loss=train_loss,
                learning_rate=learning_rate,
                tokens_per_second=tokens_per_second,
                trained_tokens=trained_tokens,
            )
        )
        assert self.job.handle is not None
        report = self.job.handle.report()
        if report.spans and (step == 1 or step % self.selections_every_steps == 0):
            self.job.reporter.send(selection_message(step, report))

    def checkpoint_saved(self, step: int, folder: Path) -> None:
        """Send the checkpoint's name."""
        self.job.reporter.send(CheckpointMessage(step=step, folder=folder.name, metrics={"train_loss": self.last_loss}))

    def save_state(self, folder: Path) -> None:
        """What the selection depends on, and what was measured before training."""
        resume_state.save(self.job, folder)

    def should_stop(self) -> bool:
        """After either signal, and from the start when the job was stopped before."""
        return self.job.stop_requested or self.job.finish_requested or self.job.spec.finish


def selection_message(step: int, report: JengaReport) -> SelectionMessage:
    """A report as a message."""
    return SelectionMessage(
        step=step,
        num_blocks=report.num_blocks,
        layers_kept_fraction=list(report.kept_fraction),
        spans=[
            {"first_layer": span.first_layer, "last_layer": span.last_layer, "blocks": list(span.blocks)}
            for span in report.spans
        ],
    )

"""A training run told to the supervisor: steps, checkpoints, and now and then which blocks were kept."""

from __future__ import annotations

import math
from pathlib import Path

from jenga_core.errors import JengaError
from jenga_core.finetuning.dense_reference import DenseReference
from jenga_core.patching.report import JengaReport
from worker import resume_state
from worker.protocol import CheckpointMessage, MemoryMessage, SelectionMessage, StepMessage
from worker.training_job import TrainingJob


class JobWatcher:
    """Relays the training run's progress (a finetuning.trainer.Watcher)."""

    def __init__(self, job: TrainingJob, selections_every_steps: int) -> None:
        self.job = job
        self.selections_every_steps = selections_every_steps
        self.last_loss = math.nan

    def memory_measured(self, activation_bytes: int, dense: DenseReference) -> None:
        """Keep it, and send what the dense step takes."""
        job = self.job
        job.dense, job.activation_bytes = dense, activation_bytes
        if dense.measured_tokens < dense.tokens:
            job.reporter.event(
                f"Dense LoRA at {dense.tokens} tokens was not run; its activation memory is extended from "
                f"{dense.measured_tokens} tokens"
            )
        job.reporter.send(
            MemoryMessage(
                phase="dense_reference",
                states_bytes=dense.states_bytes,
                activation_bytes=dense.activation_bytes,
                predictor_bytes=0,
                other_bytes=max(dense.peak_bytes - dense.states_bytes - dense.activation_bytes, 0),
                peak_bytes=dense.peak_bytes,
                device=str(job.device),
            )
        )

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
        if step == 1 or step % self.selections_every_steps == 0:
            report = self.job.handle.report()
            if report.spans:
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
        entry_layer=report.entry_layer,
        num_blocks=report.num_blocks,
        layers_kept_fraction=list(report.kept_fraction),
        spans=[
            {"first_layer": span.first_layer, "last_layer": span.last_layer, "blocks": list(span.blocks)}
            for span in report.spans
        ],
    )

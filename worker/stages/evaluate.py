"""Held-out loss after training, of the dense model with the adapter: what a user will serve."""

from __future__ import annotations

from worker.protocol import StepMessage
from worker.stages.calibrate import evaluate_held_out
from worker.training_job import TrainingJob


def run(job: TrainingJob) -> None:
    """Leaves held_out_after."""
    assert job.finished is not None
    job.held_out_after = evaluate_held_out(job)
    if job.held_out_after is not None:
        job.reporter.send(StepMessage(step=job.finished.stopped_at_step, valid_loss=job.held_out_after.loss))

"""What the dense model does before training: held-out loss, and the memory of one dense step to compare with."""

from __future__ import annotations

from jenga_core.finetuning.dense_reference import measure_dense
from jenga_core.finetuning.evaluation import HeldOut, evaluate
from worker.protocol import MemoryMessage, StepMessage
from worker.training_job import TrainingJob


def run(job: TrainingJob) -> None:
    """Leaves dense and held_out_before."""
    assert job.model is not None and job.handle is not None and job.training is not None and job.plan is not None
    job.held_out_before = evaluate_held_out(job)
    if job.held_out_before is not None:
        job.reporter.send(StepMessage(step=0, valid_loss=job.held_out_before.loss))

    sequences = [
        job.training.sequences[index] for index in range(min(job.plan.batch_size, len(job.training.sequences)))
    ]
    job.dense = measure_dense(job.model, job.handle, sequences, job.collate())
    tokens = max(len(sequence["input_ids"]) for sequence in sequences)
    if job.dense.measured_tokens < tokens:
        job.reporter.event(
            f"Dense LoRA at {tokens} tokens was not run; its activation memory is extended from "
            f"{job.dense.measured_tokens} tokens"
        )
    job.reporter.send(
        MemoryMessage(
            phase="dense_reference",
            states_bytes=job.dense.states_bytes,
            activation_bytes=job.dense.activation_bytes,
            predictor_bytes=0,
            other_bytes=max(job.dense.peak_bytes - job.dense.states_bytes - job.dense.activation_bytes, 0),
            peak_bytes=job.dense.peak_bytes,
            device=str(job.device),
        )
    )


def evaluate_held_out(job: TrainingJob) -> HeldOut | None:
    """Loss of the dense model with its adapter as it is now; None without a validation file."""
    if job.validation is None:
        return None
    assert job.model is not None
    return evaluate(
        job.model,
        job.validation.sequences,
        job.collate(),
        windows=job.spec.config.eval_windows,
        segment_tokens=job.spec.config.loss.segment_tokens,
    )

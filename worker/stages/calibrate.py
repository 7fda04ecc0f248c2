"""Before training: held-out loss and, if asked, the layers' thresholds. A job that goes on from a checkpoint finds both
in it."""

from __future__ import annotations

from jenga_core.finetuning.evaluation import HeldOut, evaluate
from jenga_core.finetuning.thresholds import calibrate
from worker import resume_state
from worker.protocol import StepMessage
from worker.training_job import TrainingJob


def run(job: TrainingJob) -> None:
    """Leaves held_out_before and, where the selection is by threshold, the handle's thresholds."""
    assert job.handle is not None
    if job.resume_from is not None:
        resume_state.load_calibration(job, job.resume_from)
        return
    job.held_out_before = evaluate_held_out(job)
    if job.held_out_before is not None:
        job.reporter.send(StepMessage(step=0, valid_loss=job.held_out_before.loss))
    if job.handle.config.enabled and job.handle.config.selection.by == "threshold":
        _find_thresholds(job)


def _find_thresholds(job: TrainingJob) -> None:
    assert job.handle is not None and job.training is not None
    held_out = job.validation or job.training
    count = min(job.spec.config.calibration.samples, len(held_out.sequences))
    chosen = [held_out.sequences[index * len(held_out.sequences) // count] for index in range(count)]
    collate = job.collate()
    config = job.spec.config.calibration
    job.reporter.event(
        f"Searching the thresholds of {len(job.handle.selecting_layers)} layers on {count} sequences, in "
        f"{config.sweeps} sweeps over the layers"
    )
    found = calibrate(
        job.handle,
        [collate([sequence]) for sequence in chosen],
        config,
        tick=job.leave_if_asked,
        sweep_done=lambda sweep: job.reporter.event(f"Sweep {sweep} of {config.sweeps} is done"),
    )
    found.save(job.folder / "thresholds.json")
    job.reporter.event(
        f"Thresholds of {len(found.by_layer)} layers, from {count} "
        f"{'validation' if job.validation else 'training'} sequences: next-token accuracy of the sparse model "
        f"{found.accuracy_before:.3f} with the mean scores, {found.accuracy_after:.3f} after the search",
        data={"by_layer": {str(layer): value for layer, value in found.by_layer.items()}},
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
        tick=job.leave_if_asked,
    )

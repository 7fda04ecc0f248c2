"""The training run itself, watched."""

from __future__ import annotations

from jenga_core.finetuning.trainer import finetune
from jenga_core.memory.accounting import peak_bytes, reset_peak, states_bytes
from worker import ranks
from worker.protocol import MemoryMessage
from worker.training_job import TrainingJob
from worker.watcher import JobWatcher


def run(job: TrainingJob) -> None:
    """Leaves finished. Raises Stopped after the step in which SIGTERM came; SIGUSR1 ends training, not the job.

    Memory is told by the attempt that trained; one that resumes after the last step leaves what was told before.
    """
    assert job.model is not None and job.training is not None and job.plan is not None
    if job.resume_from is not None:
        job.reporter.event(f"Going on from {job.resume_from.name}")
    ranks.exchange(job)
    reset_peak(job.device)
    job.finished = finetune(
        job.model,
        job.training,
        job.collate(),
        job.spec.config,
        job.plan,
        seed=job.spec.seed,
        checkpoint_folder=job.checkpoint_folder,
        watcher=JobWatcher(job, selections_every_steps=max(job.plan.total_steps // 100, 1)),
        resume_from=job.resume_from,
        ranks=job.ranks,
        measure_memory=job.dense is None,
    )
    ranks.part(job)
    if job.finished.has_trained:
        _tell_memory(job)
    if job.finished.stopped_at_step < job.plan.total_steps:
        job.leave_if_asked()
        job.warn(f"Training was stopped at step {job.finished.stopped_at_step} of {job.plan.total_steps}, as asked")


def _tell_memory(job: TrainingJob) -> None:
    assert job.model is not None and job.finished is not None and job.activation_bytes is not None
    states, peak = states_bytes(job.model, job.finished.optimizer), peak_bytes(job.device)
    predictors = 0 if job.predictors is None else states_bytes(job.predictors.predictors)
    job.reporter.send(
        MemoryMessage(
            phase="finetune",
            states_bytes=states,
            activation_bytes=job.activation_bytes,
            predictor_bytes=predictors,
            other_bytes=max(peak - states - predictors - job.activation_bytes, 0),
            peak_bytes=peak,
            device=str(job.device),
        )
    )

"""OpenAI's fine-tuning job, its events and checkpoints, with one extra object: `jenga`.

Every answer validates under the client's strict mode, which is stricter than the reference's own examples: `error` is
null unless the job failed, `hyperparameters` is always an object, times are whole seconds, and `status` is one of six
words. `jenga.state` tells what those words cannot.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from api.schemas.bodies import Answer
from jenga_core.service.db.models import Job, JobCheckpoint, JobEvent
from jenga_core.service.jobs.events import event_id
from jenga_core.service.jobs.state import JobStage, JobState
from jenga_core.service.metrics.details import Details

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]


class JobError(Answer):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class QueuePlace(Answer):
    """Where a queued job stands."""

    position: int
    """1 is next."""

    reason: str
    """Why it does not run yet."""


class Losses(Answer):
    """The newest losses, nats per token."""

    train: float | None
    held_out: float | None


class MemorySummary(Answer):
    """Peak of the job, and activations beside those of a dense step of the same batch; bytes."""

    peak_bytes: int | None
    activation_bytes: int | None
    dense_activation_bytes: int | None


class JengaDetails(Answer):
    """What OpenAI's job has no place for."""

    state: JobState
    """Who may act: also pausing, paused and cancelling, which `status` has no words for."""

    stage: JobStage
    attempt: int
    """How often the job has been started."""

    started_at: int | None
    """When its newest attempt began; null until it first runs."""

    ran_seconds: float
    """How long its ended attempts ran, together; waits and pauses do not count."""

    stop_asked_at: int | None
    """When it was asked to finish with what is trained."""

    step: int
    total_steps: int | None
    config: dict[str, Any]
    """The JengaConfig, with every default."""

    report: dict[str, Any] | None
    """What the method did: score source, held-out loss before and after, warnings."""

    priority: int
    gpus: int
    oom_policy: str
    owner: str | None
    """Name of the key that asked for the job."""

    queue: QueuePlace | None
    """While it is queued."""

    loss: Losses | None
    memory: MemorySummary | None

    @classmethod
    def of(cls, job: Job, details: Details) -> Self:
        """The public form of a row and what belongs to it."""
        waiting, memory = details.waiting, details.memory
        measured = details.train_loss is not None or details.held_out_loss is not None
        return cls(
            state=JobState(job.state),
            stage=JobStage(job.stage),
            attempt=job.attempt,
            started_at=_whole(job.started_at),
            ran_seconds=round(job.gpu_seconds / job.gpus, 1),
            stop_asked_at=_whole(job.stop_asked_at),
            step=job.step,
            total_steps=job.total_steps,
            config=job.config,
            report=job.report,
            priority=job.priority,
            gpus=job.gpus,
            oom_policy=job.oom_policy,
            owner=details.owner,
            queue=QueuePlace(position=waiting.position, reason=waiting.reason) if waiting else None,
            loss=Losses(train=details.train_loss, held_out=details.held_out_loss) if measured else None,
            memory=MemorySummary(**vars(memory)) if memory else None,
        )


class FineTuningJob(Answer):
    """A job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    """While running: as if the remaining steps took as long as those done. Moves when a step is done."""

    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Status
    error: JobError | None
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    integrations: list[Any] | None = None
    metadata: dict[str, Any] | None
    user_provided_suffix: str | None
    jenga: JengaDetails

    @classmethod
    def of(cls, job: Job, details: Details) -> Self:
        """The public form of a row and what belongs to it."""
        return cls(
            id=job.id,
            created_at=int(job.created_at),
            finished_at=_whole(job.finished_at),
            estimated_finish=_estimated_finish(job, details),
            model=job.model,
            fine_tuned_model=job.fine_tuned_model,
            organization_id=job.team_id,
            status=status_of(job),
            error=JobError.model_validate(job.error) if job.error and job.state == JobState.FAILED else None,
            training_file=job.training_file,
            validation_file=job.validation_file,
            result_files=job.result_files,
            trained_tokens=job.trained_tokens,
            seed=job.seed,
            hyperparameters=job.hyperparameters,
            method={"type": "supervised", "supervised": {"hyperparameters": job.hyperparameters}},
            metadata=job.tags,
            user_provided_suffix=job.suffix,
            jenga=JengaDetails.of(job, details),
        )


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)


def status_of(job: Job) -> Status:
    """OpenAI's word for the state of a job."""
    match JobState(job.state):
        case JobState.QUEUED | JobState.PAUSING | JobState.PAUSED:
            return "queued"
        case JobState.RUNNING | JobState.CANCELLING:
            checking = job.state == JobState.RUNNING and job.stage == JobStage.VALIDATE
            return "validating_files" if checking else "running"
        case JobState.SUCCEEDED:
            return "succeeded"
        case JobState.FAILED:
            return "failed"
        case JobState.CANCELLED:
            return "cancelled"


def _estimated_finish(job: Job, details: Details) -> int | None:
    """At the pace of the newest steps; those before a pause or a crash do not count again."""
    if details.last_step_at is None or details.seconds_per_step is None or not job.total_steps:
        return None
    return int(details.last_step_at + details.seconds_per_step * max(job.total_steps - job.step, 0))


class EventObject(Answer):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """The public form of a row."""
        return cls(
            id=event_id(event.job_id, event.seq),
            created_at=int(event.created_at),
            level=event.level,
            message=event.message,
            type=event.type,
            data=event.data,
        )


class CheckpointObject(Answer):
    """A state that a job can go on from."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: JobCheckpoint) -> Self:
        """The public form of a row."""
        return cls(
            id=checkpoint.id,
            created_at=int(checkpoint.created_at),
            fine_tuned_model_checkpoint=f"{checkpoint.job_id}:ckpt-step-{checkpoint.step}",
            fine_tuning_job_id=checkpoint.job_id,
            step_number=checkpoint.step,
            metrics={"step": checkpoint.step, **checkpoint.metrics},
        )

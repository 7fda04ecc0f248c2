"""OpenAI's fine-tuning job, request and answer, with one extra object: `jenga`.

Every answer validates under the client's strict mode, which is stricter than the reference's own examples: `error` is
null unless the job failed, `hyperparameters` is always an object, times are whole seconds, and `status` is one of six
words. `jenga.state` tells what those words cannot.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, ValidationError

from api.schemas.bodies import Answer, Request
from api.schemas.lists import Text
from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError
from jenga_core.service.db.models import Job, JobCheckpoint, JobEvent
from jenga_core.service.jobs.events import event_id
from jenga_core.service.jobs.spec import JobRequest
from jenga_core.service.jobs.state import JobStage, JobState
from jenga_core.service.metrics.details import Details

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]


def _auto_or(kind: type[int] | type[float], low: float, high: float) -> PlainValidator:
    """A number, or "auto": one message, where a union would give one for each of its members."""

    def check(value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if value != "auto" and not (number and kind(value) == value):
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"'auto' or {what} from {low:g} to {high:g} was expected, got {value!r}")
        return value if value == "auto" else kind(value)

    return PlainValidator(check, json_schema_input_type=Literal["auto"] | kind)


def _sendable(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse half surrogate pairs anywhere inside, with a ValueError: no answer could repeat them."""
    json.dumps(value, ensure_ascii=False).encode()
    return value


class HyperparametersRequest(Request):
    """OpenAI's three, each "auto" or a number."""

    n_epochs: Annotated[Literal["auto"] | int, _auto_or(int, 1, 50)] = "auto"
    batch_size: Annotated[Literal["auto"] | int, _auto_or(int, 1, 256)] = "auto"
    learning_rate_multiplier: Annotated[Literal["auto"] | float, _auto_or(float, 1e-6, 1e6)] = "auto"


class SupervisedRequest(Request):
    """The one method there is."""

    hyperparameters: HyperparametersRequest | None = None


class MethodRequest(Request):
    """How to fine-tune."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedRequest | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class Scheduling(Request):
    """The fields of a job's `jenga` object that say how it is run and not what it computes."""

    priority: Annotated[int, Field(ge=-1, le=1)] = 0
    """1 goes before 0, which goes before -1."""

    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    """Whole devices of one host."""

    oom_policy: Literal["fail", "shrink"] = "fail"
    """When memory runs out: fail, or start once more with less."""

    @classmethod
    def split(cls, jenga: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The scheduling, and what is left for JengaConfig. Raises ConfigError."""
        own = {name: value for name, value in jenga.items() if name in cls.model_fields}
        try:
            scheduling = cls.model_validate(own)
        except ValidationError as error:
            first = error.errors()[0]
            where = f"jenga.{first['loc'][0]}"
            raise ConfigError(f"{where}: {first['msg']} (got {first['input']!r})", param=where) from error
        return scheduling, {name: value for name, value in jenga.items() if name not in own}


class CreateJob(Request):
    """The body of `POST /v1/fine_tuning/jobs`."""

    model: Text
    training_file: Text
    validation_file: Text | None = None
    method: MethodRequest | None = None
    hyperparameters: HyperparametersRequest | None = None
    suffix: Annotated[Text, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: list[Any] | None = None
    jenga: Annotated[dict[str, Any], AfterValidator(_sendable)] | None = None
    """JengaConfig's fields (jenga_core/config.py), and those of Scheduling."""

    def to_request(self) -> JobRequest:
        """The request as the service's half sees it. Raises ConfigError for what Jenga cannot do."""
        if self.integrations:
            raise ConfigError(
                "integrations are not supported; leave them out and read GET .../metrics",
                code="unsupported_integrations",
                param="integrations",
            )
        method = self.method
        if method is not None and (method.type != "supervised" or method.dpo or method.reinforcement):
            raise ConfigError(
                f"method {method.type!r} is not supported; the one there is, is 'supervised'",
                code="unsupported_method",
                param="method.type",
            )
        scheduling, jenga = Scheduling.split(self.jenga or {})
        in_method = method.supervised.hyperparameters if method and method.supervised else None
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            config=JengaConfig.parse(jenga, param="jenga"),
            hyperparameters=self.hyperparameters.model_dump() if self.hyperparameters else None,
            method_hyperparameters=in_method.model_dump() if in_method else None,
            suffix=self.suffix,
            seed=self.seed,
            metadata=self.metadata,
            priority=scheduling.priority,
            gpus=scheduling.gpus,
            oom_policy=scheduling.oom_policy,
        )


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
            finished_at=int(job.finished_at) if job.finished_at is not None else None,
            estimated_finish=_estimated_finish(job, details.last_step_at),
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


def _estimated_finish(job: Job, last_step_at: float | None) -> int | None:
    if job.state != JobState.RUNNING or not job.started_at or not last_step_at or not job.step or not job.total_steps:
        return None
    return int(job.started_at + (last_step_at - job.started_at) * max(1.0, job.total_steps / job.step))


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

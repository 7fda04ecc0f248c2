"""What the trainer says, written into the database.

One row per step and phase, written over when a later attempt repeats the step; events are only ever added. The words of
step and checkpoint events are OpenAI's, because people's scripts look for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, JobCheckpoint, JobMemory, JobMetric, JobSelection
from jenga_core.service.ids import new_id
from jenga_core.service.jobs import events, lifecycle
from jenga_core.service.models import predictors
from worker.protocol import (
    CheckpointMessage,
    ErrorMessage,
    EventMessage,
    MemoryMessage,
    Message,
    PlanMessage,
    PredictorMessage,
    ResultMessage,
    SelectionMessage,
    StageMessage,
    StepMessage,
    message_adapter,
)

SHOWN_CHARACTERS = 200


def parse(line: bytes) -> Message:
    """One line of the pipe. What is no message becomes a warning for the people who watch."""
    try:
        return message_adapter.validate_json(line)
    except ValidationError as error:
        shown = line[:SHOWN_CHARACTERS].decode("utf-8", "replace")
        reason = error.errors(include_url=False)[0]["msg"]
        return EventMessage(level="warn", message=f"The trainer sent a line that is no message ({reason}): {shown}")


class Relay:
    """Writes the messages of one attempt, and keeps the two that decide how it ends."""

    def __init__(self, job: Job) -> None:
        assert job.lease_token is not None
        self._job_id = job.id
        self._token = job.lease_token
        self._total_steps = job.total_steps
        self.result: ResultMessage | None = None
        self.error: ErrorMessage | None = None

    def write(self, session: Session, messages: Iterable[Message]) -> None:
        """Write the messages in order. The session's transaction must hold the job (see worker/lease.py)."""
        for message in messages:
            self._write(session, message)

    def _write(self, session: Session, message: Message) -> None:
        match message:
            case StageMessage(stage=stage):
                self._record(session, stage=stage)
                self._tell(session, f"Stage {stage} began", data={"stage": stage})
            case PlanMessage(total_steps=total, hyperparameters=hyperparameters):
                self._total_steps = total
                self._record(session, total_steps=total, hyperparameters=hyperparameters)
            case StepMessage():
                self._step(session, message)
            case MemoryMessage():
                session.merge(JobMemory(job_id=self._job_id, created_at=database_now(), **_columns(message)))
            case SelectionMessage():
                session.merge(
                    JobSelection(
                        job_id=self._job_id,
                        step=message.step,
                        num_blocks=message.num_blocks,
                        kept_fraction={"layers": message.layers_kept_fraction},
                        kept_blocks={"entry_layer": message.entry_layer, "spans": message.spans},
                        created_at=database_now(),
                    )
                )
            case PredictorMessage(folder=folder, reused=reused, settings=settings, report=report):
                job = session.get_one(Job, self._job_id)
                predictors.record(session, job, folder, made=not reused, settings=settings, report=storable(report))
            case CheckpointMessage():
                self._checkpoint(session, message)
            case EventMessage():
                self._tell(session, message.message, level=message.level, data=message.data)
            case ResultMessage():
                self.result = message
            case ErrorMessage():
                self.error = message

    def _step(self, session: Session, message: StepMessage) -> None:
        numbers = {key: storable(value) for key, value in _columns(message).items() if value is not None}
        tokens = numbers.pop("trained_tokens", None)
        if message.train_loss is not None or session.get(JobMetric, (self._job_id, message.step)) is None:
            numbers["created_at"] = database_now()  # a step's own; its held-out loss comes later
        session.merge(JobMetric(job_id=self._job_id, **numbers))
        self._record(session, step=message.step, **({} if tokens is None else {"trained_tokens": tokens}))
        losses = {"training": message.train_loss, "validation": message.valid_loss}
        told = ", ".join(f"{name} loss={loss:.4g}" for name, loss in losses.items() if loss is not None)
        if told:
            of = "" if self._total_steps is None else f"/{self._total_steps}"
            data = {**_columns(message), "total_steps": self._total_steps}
            self._tell(session, f"Step {message.step}{of}: {told}", type="metrics", data=data)

    def _checkpoint(self, session: Session, message: CheckpointMessage) -> None:
        same_step = (JobCheckpoint.job_id == self._job_id) & (JobCheckpoint.step == message.step)
        row = session.scalars(select(JobCheckpoint).where(same_step)).one_or_none()
        if row is None:
            row = JobCheckpoint(id=new_id("ftckpt_"), job_id=self._job_id, step=message.step)
            session.add(row)
        row.folder = str(PurePosixPath("checkpoints", message.folder))
        row.metrics = storable(message.metrics)
        row.created_at = database_now()
        self._tell(session, f"Checkpoint created at step {message.step}", data={"step": message.step})

    def _record(self, session: Session, **values: Any) -> None:
        lifecycle.record(session, self._job_id, self._token, **values)

    def _tell(self, session: Session, message: str, *, data: dict[str, Any] | None = None, **about: str) -> None:
        events.append(session, self._job_id, storable(message), data=storable(data), **about)


def _columns(message: StepMessage | MemoryMessage) -> dict[str, Any]:
    return message.model_dump(exclude={"kind"})


def storable(value: Any) -> Any:
    """The value as JSON and PostgreSQL can hold it: NaN and infinity become null, NUL and lone surrogates a `?`."""
    if isinstance(value, dict):
        return {storable(key): storable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [storable(each) for each in value]
    if isinstance(value, str):
        return value.replace("\0", "?").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

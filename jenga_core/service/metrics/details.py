"""What is shown beside a job's own row: who asked for it, its place in the queue, its newest loss, its memory.

A page of jobs costs one query of each kind, by primary key, however many steps the jobs have, and one more for each
that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, union_all
from sqlalchemy.orm import Session

from jenga_core.service.db.models import ApiKey, Job, JobMemory, JobMetric, JobRequest
from jenga_core.service.fleet import placement
from jenga_core.service.fleet.placement import Waiting
from jenga_core.service.jobs.state import JobState

PACE_STEPS = 20
"""Steps whose time tells how long the rest will take."""


@dataclass
class Memory:
    """Bytes; None while not measured."""

    peak_bytes: int | None = None
    activation_bytes: int | None = None
    dense_activation_bytes: int | None = None


@dataclass
class Details:
    """Of one job."""

    owner: str | None = None
    """Name of the key that asked for it."""

    waiting: Waiting | None = None
    train_loss: float | None = None
    held_out_loss: float | None = None
    """Nats per token, both."""

    last_step_at: float | None = None
    """When the newest step was written."""

    seconds_per_step: float | None = None
    """Of the newest steps of this attempt; None where it has made too few."""

    memory: Memory | None = None


def of_jobs(session: Session, jobs: Sequence[Job]) -> dict[str, Details]:
    """Details by job id."""
    found = {job.id: Details() for job in jobs}
    if not found:
        return found
    ids = list(found)
    owners = select(JobRequest.job_id, ApiKey.name).join(ApiKey, ApiKey.id == JobRequest.key_id)
    for job_id, name in session.execute(owners.where(JobRequest.job_id.in_(ids))):
        found[job_id].owner = name
    queued = [job.id for job in jobs if job.state == JobState.QUEUED]
    if queued:
        for job_id, waiting in placement.waiting(session, queued).items():
            found[job_id].waiting = waiting
    _losses(session, found, ids)
    _pace(session, found, [job for job in jobs if job.state == JobState.RUNNING and job.started_at])
    _memory(session, found, ids)
    return found


def _losses(session: Session, found: dict[str, Details], ids: list[str]) -> None:
    """The newest step has the training loss; held-out loss is measured at step 0 and after the last."""
    columns = (JobMetric.job_id, JobMetric.step, JobMetric.train_loss, JobMetric.valid_loss, JobMetric.created_at)
    first = select(*columns).where(JobMetric.job_id.in_(ids), JobMetric.step == 0)
    of_job = (Job.id == JobMetric.job_id) & (Job.step == JobMetric.step)
    newest = select(*columns).join(Job, of_job).where(Job.id.in_(ids), Job.step > 0)
    both = union_all(first, newest)  # "step = 0 OR step = jobs.step" would read every step of every job
    for metric in sorted(session.execute(both), key=lambda row: row.step):
        details = found[metric.job_id]
        if metric.valid_loss is not None:
            details.held_out_loss = metric.valid_loss
        if metric.step:
            details.train_loss, details.last_step_at = metric.train_loss, metric.created_at


def _pace(session: Session, found: dict[str, Details], running: Sequence[Job]) -> None:
    """From the newest step and one PACE_STEPS before it, or the attempt's first where that is later."""
    for job in running:
        earliest = select(JobMetric.step, JobMetric.created_at).where(
            JobMetric.job_id == job.id,
            JobMetric.step.between(max(job.step - PACE_STEPS, 1), job.step - 1),
            JobMetric.created_at >= job.started_at,
        )
        first = session.execute(earliest.order_by(JobMetric.step).limit(1)).one_or_none()
        last_step_at = found[job.id].last_step_at
        if first is not None and last_step_at is not None:
            found[job.id].seconds_per_step = (last_step_at - first.created_at) / (job.step - first.step)


def _memory(session: Session, found: dict[str, Details], ids: list[str]) -> None:
    for row in session.scalars(select(JobMemory).where(JobMemory.job_id.in_(ids))):
        details = found[row.job_id]
        details.memory = memory = details.memory or Memory()
        if row.phase == "finetune":
            memory.peak_bytes, memory.activation_bytes = row.peak_bytes, row.activation_bytes
        elif row.phase == "dense_reference":
            memory.dense_activation_bytes = row.activation_bytes

"""The job row, which is the queue, and what a job leaves behind while it runs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, false
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base
from jenga_core.service.jobs.state import JobStage, JobState


def _one_of(column: str, values: type[JobState] | type[JobStage]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class Job(Base):
    """One fine-tuning job. `state`, `stage` and the lease are written by jobs/lifecycle.py alone."""

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("state", JobState),
        _one_of("stage", JobStage),
        Index(None, "team_id", "created_at", "id"),
        Index(None, "team_id", "started_at"),
        Index(None, "team_id", "state"),
        Index(None, "state", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """`ftjob-...`"""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    model: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    tags: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    """The caller's `metadata`: up to 16 strings by name."""

    hyperparameters: Mapped[dict[str, Any]]
    """n_epochs, batch_size, learning_rate_multiplier: "auto" or a number."""

    config: Mapped[dict[str, Any]]
    """The validated JengaConfig."""

    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """Band: 1 goes before 0, which goes before -1. Teams share a band fairly."""

    gpus: Mapped[int] = mapped_column(default=1, server_default="1")
    """Whole devices of one host that it runs on."""

    oom_policy: Mapped[str] = mapped_column(default="fail", server_default="fail")
    """When memory runs out: `fail`, or `shrink` to start once more with less."""

    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Expected peak on a GPU (memory/estimate.py), which a device must have; None when it is not known."""

    host_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """What it keeps in its host's memory for each of its GPUs, as expected (`offload`)."""

    state: Mapped[str]
    """Who may act (JobState)."""

    stage: Mapped[str]
    """How far it is (JobStage)."""

    attempt: Mapped[int] = mapped_column(default=0)
    """How often it has been claimed."""

    lease_token: Mapped[str | None]
    """Held by the one supervisor whose writes count; None while nobody runs the job."""

    lease_expires_at: Mapped[float | None]
    """By the database's clock."""

    rung_at: Mapped[float | None]
    """When its doorbell was last rung."""

    stop_asked_at: Mapped[float | None]
    """Somebody asked to finish now with what is trained."""

    filler: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Claimed before its turn, on devices that the first in line could not use yet; it gives way to that one."""

    give_way_at: Mapped[float | None]
    """The first in line asked this filler for its devices."""

    shrunk: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Memory ran out once, and it was started again with less."""

    gpu_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    """Device time of its ended attempts."""

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    report: Mapped[dict[str, Any] | None]
    """What the method did, from the trainer: score source, evaluation before and after, warnings."""

    error: Mapped[dict[str, Any] | None]
    """code, message, param of a failed job."""

    fine_tuned_model: Mapped[str | None]
    result_files: Mapped[list[str]] = mapped_column(default=list)
    event_seq: Mapped[int] = mapped_column(default=0)
    """Sequence number of the newest event."""

    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class JobEvent(Base):
    """Something that happened, in words. Numbered without gaps within a job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    level: Mapped[str]
    """`info`, `warn` or `error`."""

    type: Mapped[str]
    """`message` or `metrics`."""

    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]


class JobMetric(Base):
    """Numbers of one optimizer step."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    train_loss: Mapped[float | None]
    """Mean next-token loss (nats) over the tokens that carried loss."""

    valid_loss: Mapped[float | None]
    """Mean next-token loss (nats) of the dense model on held-out windows."""

    learning_rate: Mapped[float | None]
    tokens_per_second: Mapped[float | None]
    created_at: Mapped[float]


class JobMemory(Base):
    """Memory of one phase, in bytes. Written again when a phase is measured again."""

    __tablename__ = "job_memory"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    phase: Mapped[str] = mapped_column(primary_key=True)
    """`dense_reference` (one dense step of the same model and batch) or `finetune`."""

    states_bytes: Mapped[int] = mapped_column(BigInteger)
    """Weights, gradients and optimizer state."""

    activation_bytes: Mapped[int] = mapped_column(BigInteger)
    """Distinct storages that autograd saved for one backward pass, weights excluded."""

    predictor_bytes: Mapped[int] = mapped_column(BigInteger)
    other_bytes: Mapped[int] = mapped_column(BigInteger)
    """Peak less the three above; temporaries and, on a CPU, the process itself."""

    peak_bytes: Mapped[int] = mapped_column(BigInteger)
    """Highest allocation of the phase: CUDA allocator, or resident memory on a CPU."""

    device: Mapped[str]
    created_at: Mapped[float]


class JobSelection(Base):
    """Which blocks stayed involved, in which layers, at one step (first sequence of the batch)."""

    __tablename__ = "job_selections"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    num_blocks: Mapped[int]
    kept_fraction: Mapped[dict[str, Any]]
    """`{"layers": [share of tokens involved in layer 0, 1, ...]}`"""

    kept_blocks: Mapped[dict[str, Any]]
    """`{"entry_layer": 18, "spans": [{"first_layer": 0, "last_layer": 29, "blocks": [0, 3, ...]}]}`; layers in no span
    keep all. Rows of old jobs have no `entry_layer`."""

    created_at: Mapped[float]


class JobCheckpoint(Base):
    """A state on disk that the job can go on from."""

    __tablename__ = "job_checkpoints"
    __table_args__ = (Index(None, "job_id", "step", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    """`ftckpt_...`"""

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    folder: Mapped[str]
    """Folder name inside the job's own folder."""

    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[float]

"""The hosts that train, their devices, who holds which, and how much each team has used."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, false
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base


class Worker(Base):
    """One Celery process that runs jobs, alive as long as its heartbeat is."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`worker-...`, new at every start."""

    host: Mapped[str]
    pid: Mapped[int]
    versions: Mapped[dict[str, Any]]
    """Of what training depends on, by package; `driver` is the GPU's."""

    started_at: Mapped[float]
    heartbeat_at: Mapped[float]
    """By the database's clock."""

    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of the host; None: not known."""

    draining: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It shuts down and takes no more jobs."""


class Device(Base):
    """A GPU, or the CPU of a host without one. It outlives the worker that reported it first."""

    __tablename__ = "devices"

    uuid: Mapped[str] = mapped_column(primary_key=True)
    """`GPU-...` as NVML has it, or `CPU-...`, made of the host's machine id."""

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), index=True)
    """Who reports it."""

    kind: Mapped[str]
    """`cuda` or `cpu`."""

    name: Mapped[str]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_used_bytes: Mapped[int] = mapped_column(BigInteger)
    """By everybody, at the last heartbeat."""

    foreign_processes: Mapped[list[Any]] = mapped_column(JSON)
    """`[{"pid", "name", "memory_bytes"}]` of what computes here and is no job's. Reported, never touched."""


class DeviceLease(Base):
    """A whole device held by a job, for as long as the job's own lease."""

    __tablename__ = "device_leases"

    device_uuid: Mapped[str] = mapped_column(ForeignKey("devices.uuid"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    token: Mapped[str]
    """The job's lease token at the time."""

    since: Mapped[float]


class TeamUsage(Base):
    """Device time that a team has used, halved every so often (jenga_core/service/fleet/usage.py)."""

    __tablename__ = "team_usage"

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    gpu_seconds: Mapped[float]
    """Decayed to `as_of`."""

    as_of: Mapped[float]

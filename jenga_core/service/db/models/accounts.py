"""Teams, their API keys, and the log of who did what. A team is what OpenAI's API calls an organization."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base


class Team(Base):
    """Owner of files, jobs and fine-tuned models. A quota that is None does not limit."""

    __tablename__ = "teams"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`org-...`"""

    name: Mapped[str] = mapped_column(unique=True)
    max_storage_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Files and unfinished uploads together."""

    max_queued_jobs: Mapped[int | None]
    """Jobs that wait: queued or paused."""

    max_running_jobs: Mapped[int | None]
    """Jobs that hold devices. More may be queued; they wait."""

    max_gpu_hours: Mapped[float | None]
    """GPU hours in the last accounts.quotas.WINDOW_DAYS days."""

    created_at: Mapped[float]


class ApiKey(Base):
    """A key opens one team's door. Only an HMAC of it is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    """Public part of the key, found in clear text inside it."""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"), index=True)
    name: Mapped[str]
    digest: Mapped[str]
    """HMAC-SHA256 of the whole key under the pepper, in hex."""

    scopes: Mapped[list[str]]
    """Of accounts.keys.Scope."""

    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    """By the database's clock; None: never."""

    last_used_at: Mapped[float | None]
    """To within accounts.keys.LAST_USED_SECONDS."""

    revoked_at: Mapped[float | None]


class AuditEntry(Base):
    """One change that a key made, written in the transaction of the change itself."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "created_at", "id"), Index(None, "team_id", "created_at", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    """`audit-...`"""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    """The team of the key."""

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    action: Mapped[str]
    """What was done to what kind of object, e.g. `job.create`."""

    object_id: Mapped[str]
    request_id: Mapped[str]
    """The answer's `x-request-id`."""

    details: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]


class JobRequest(Base):
    """Which key asked for a job, and with which request: a request that is sent again finds its job here."""

    __tablename__ = "job_requests"
    __table_args__ = (
        Index(None, "key_id", "idempotency_key", unique=True),  # NULLs are distinct
        Index(None, "key_id", "body_sha256", "created_at"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    body_sha256: Mapped[str]
    """Of the validated body in canonical JSON, in hex."""

    idempotency_key: Mapped[str | None]
    """The header `Idempotency-Key`."""

    created_at: Mapped[float]

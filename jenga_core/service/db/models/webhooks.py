"""Webhooks: where a team wants to hear of its jobs, and what is still to be told."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base


class WebhookEndpoint(Base):
    """An address of a team. Its secret is derived from the pepper and the id; it is not stored."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "team_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    """`we_...`"""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    url: Mapped[str]
    events: Mapped[list[str]]
    """Types of events that are sent, e.g. `fine_tuning.job.succeeded`."""

    created_at: Mapped[float]


class WebhookDelivery(Base):
    """The outbox: one event for one endpoint, written in the transaction of the change that it tells of."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "next_attempt_at"),
        Index(None, "endpoint_id", "job_id", "seq"),
    )

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    """Order of writing, and so of sending within one job and endpoint."""

    event_id: Mapped[str]
    """`evt_...`: the same in every attempt, so that a receiver can tell a repetition."""

    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    payload: Mapped[dict[str, Any]]
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[float | None]
    """When to send it next, by the database's clock; None once it was delivered or given up."""

    delivered_at: Mapped[float | None]
    last_error: Mapped[str | None]
    """Why the last attempt failed."""

    created_at: Mapped[float]

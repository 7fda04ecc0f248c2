"""Teams and their API keys. A team is what OpenAI's API calls an organization."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base


class Team(Base):
    """Owner of files, jobs and fine-tuned models."""

    __tablename__ = "teams"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`org-...`"""

    name: Mapped[str] = mapped_column(unique=True)
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

    created_at: Mapped[float]
    revoked_at: Mapped[float | None]

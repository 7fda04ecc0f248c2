"""Uploaded files and job results."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base


class StoredFile(Base):
    """A file of a team. Its bytes lie in the file store under its id."""

    __tablename__ = "files"
    __table_args__ = (Index(None, "team_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    """`file-...`"""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    purpose: Mapped[str]
    """`fine-tune` for uploads, `fine-tune-results` for what a job leaves."""

    filename: Mapped[str]
    """For people only; never part of a path."""

    bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int | None]
    """Rows of a checked training file."""

    status: Mapped[str]
    """`uploaded`, `processed` or `error`, the words OpenAI's File object allows."""

    status_details: Mapped[str | None]
    """Why status is `error`: the row and the reason."""

    created_at: Mapped[float]

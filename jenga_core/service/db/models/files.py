"""Uploaded files, job results, and files that arrive in parts."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base


class StoredFile(Base):
    """A file of a team. Its bytes lie in the file store under its id."""

    __tablename__ = "files"
    __table_args__ = (Index(None, "team_id", "created_at", "id"), Index(None, "expires_at"))

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
    expires_at: Mapped[float | None]
    """From then on, by the database's clock, the file does not exist; its bytes go once no job needs them."""


class Upload(Base):
    """A file that comes in parts, over any number of requests, until it is completed."""

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "team_id", "status"), Index(None, "status", "expires_at"))

    id: Mapped[str] = mapped_column(primary_key=True)
    """`upload_...`"""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    """Announced size of the whole."""

    filename: Mapped[str]
    purpose: Mapped[str]
    status: Mapped[str]
    """`pending`, `completed`, `cancelled` or `expired`, the words OpenAI's Upload object allows."""

    file_expires_after_seconds: Mapped[int | None]
    """Of the file that it becomes, counted from the file's creation."""

    file_id: Mapped[str | None]
    """The file that it became."""

    created_at: Mapped[float]
    expires_at: Mapped[float]
    """Until when parts are accepted, by the database's clock."""


class UploadPart(Base):
    """Some bytes of an upload; they lie in the file store under the part's id until the upload ends."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`part_...`"""

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float]

"""OpenAI's File object."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel

from jenga_core.service.db.models import StoredFile


class FileObject(BaseModel):
    """An upload, or what a job left."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str
    """`processed`, or `error` when a row is wrong."""

    status_details: str | None
    """The first wrong row, and what is wrong with it."""

    @classmethod
    def of(cls, file: StoredFile) -> Self:
        """The public form of a row."""
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=int(file.created_at),
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,
            status_details=file.status_details,
        )


class FileDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True

"""OpenAI's File and Upload objects."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from api.schemas.bodies import Answer, Request
from api.schemas.lists import Text
from jenga_core.service.db.models import StoredFile, Upload, UploadPart
from jenga_core.service.files.uploads import MAX_PARTS


class FileObject(Answer):
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
            expires_at=int(file.expires_at) if file.expires_at is not None else None,
            filename=file.filename,
            purpose=file.purpose,
            status=file.status,
            status_details=file.status_details,
        )


class FileDeleted(Answer):
    """The answer to DELETE."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ExpiresAfter(Request):
    """When a file stops to exist, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class CreateUpload(Request):
    """The body of `POST /v1/uploads`."""

    bytes: Annotated[int, Field(gt=0, lt=2**62)]
    """Size of the whole file."""

    filename: Annotated[Text, Field(min_length=1, max_length=255)]
    mime_type: Annotated[Text, Field(max_length=255)]
    """Not used: what a file is, its rows tell."""

    purpose: Literal["fine-tune"]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Request):
    """The body of `POST /v1/uploads/{upload_id}/complete`."""

    part_ids: Annotated[list[Text], Field(min_length=1, max_length=MAX_PARTS)]
    """In the order of the file."""

    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None
    """Of the whole file."""


class UploadObject(Answer):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None
    """What it became."""

    @classmethod
    def of(cls, upload: Upload, file: StoredFile | None = None) -> Self:
        """The public form of a row."""
        return cls(
            id=upload.id,
            bytes=upload.bytes,
            created_at=int(upload.created_at),
            expires_at=int(upload.expires_at),
            filename=upload.filename,
            purpose=upload.purpose,
            status=upload.status,
            file=FileObject.of(file) if file else None,
        )


class UploadPartObject(Answer):
    """Some bytes of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: UploadPart) -> Self:
        """The public form of a row."""
        return cls(id=part.id, created_at=int(part.created_at), upload_id=part.upload_id)

"""Uploads: a file that comes in parts, over any number of requests.

    pending --complete--> completed     the parts, in the order that the caller gives, become one file
       |-----cancel-----> cancelled
       `-----(an hour)--> expired

The parts lie in the file store under their own ids. Every move is a compare-and-set on `status`, so of two requests
that end an upload one wins. Rows of parts go with the move; their bytes are the caller's, once that has committed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jenga_core.errors import ConfigError, ConflictError, NotFoundError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Upload, UploadPart
from jenga_core.service.files.store import FileStore
from jenga_core.service.ids import new_id

LIFETIME_SECONDS = 3600
"""How long parts are accepted."""

MAX_PART_BYTES = 64 * 2**20
MAX_PARTS = 10_000

_COPY_BYTES = 2**20


def create(
    session: Session, team_id: str, *, bytes: int, filename: str, purpose: str, file_expires_after_seconds: int | None
) -> Upload:
    """A pending upload of so many bytes."""
    upload = Upload(
        id=new_id("upload_"),
        team_id=team_id,
        bytes=bytes,
        filename=filename,
        purpose=purpose,
        status="pending",
        file_expires_after_seconds=file_expires_after_seconds,
        created_at=database_now(),
        expires_at=database_now() + LIFETIME_SECONDS,
    )
    session.add(upload)
    session.flush()
    return upload


def get(session: Session, team_id: str, upload_id: str) -> Upload:
    """The team's upload. Raises NotFoundError."""
    upload = session.scalars(select(Upload).where(Upload.id == upload_id, Upload.team_id == team_id)).one_or_none()
    if upload is None:
        raise NotFoundError(f"No such upload: {upload_id!r}. Begin one with POST /v1/uploads")
    return upload


def pending(session: Session, team_id: str, upload_id: str, *, lock: bool = False) -> Upload:
    """The team's upload, which still takes parts. Raises NotFoundError, or ConflictError when it has ended."""
    upload = get(session, team_id, upload_id)
    takes = select(Upload).where(Upload.id == upload_id, Upload.status == "pending", Upload.expires_at > database_now())
    if session.scalars(takes.with_for_update() if lock else takes).one_or_none() is None:
        status = "expired" if upload.status == "pending" else upload.status
        raise ConflictError(f"Upload {upload_id} is {status}; begin a new one", code="upload_not_pending")
    return upload


def add_part(session: Session, upload: Upload, part_id: str, bytes: int) -> UploadPart:
    """The row of a part whose bytes are in the store. Raises ConfigError for more than was announced."""
    sizes = list(session.scalars(select(UploadPart.bytes).where(UploadPart.upload_id == upload.id)))
    if len(sizes) >= MAX_PARTS:
        raise ConfigError(f"Upload {upload.id} has {MAX_PARTS} parts already; send larger ones", code="too_many_parts")
    if sum(sizes) + bytes > upload.bytes:
        raise ConfigError(
            f"Upload {upload.id} was announced with {upload.bytes} bytes, and its parts have {sum(sizes) + bytes}; "
            "announce the size of the whole file",
            code="upload_too_large",
            param="data",
        )
    part = UploadPart(id=part_id, upload_id=upload.id, bytes=bytes, created_at=database_now())
    session.add(part)
    session.flush()
    return part


def check_parts(session: Session, upload: Upload, part_ids: Sequence[str]) -> None:
    """Raise ConfigError unless these are distinct parts of the upload that add up to the announced size."""
    of_upload = select(UploadPart.id, UploadPart.bytes).where(UploadPart.upload_id == upload.id)
    sizes = {part.id: part.bytes for part in session.execute(of_upload)}
    got_bytes = 0
    for part_id in part_ids:
        if part_id not in sizes:
            raise ConfigError(
                f"{part_id!r} is no part of upload {upload.id}, or is given twice",
                code="invalid_part",
                param="part_ids",
            )
        got_bytes += sizes.pop(part_id)
    if got_bytes != upload.bytes:
        raise ConfigError(
            f"The parts have {got_bytes} bytes, but {upload.bytes} were announced; "
            "send the missing parts, or give them all in part_ids",
            code="upload_incomplete",
            param="part_ids",
        )


def assemble(store: FileStore, part_ids: Sequence[str], file_id: str, md5: str | None) -> None:
    """Write the parts one after the other into the store under `file_id`, at constant memory.

    Raises ConfigError when the MD5 (hex) of the whole is another than expected; nothing is kept then.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with store.writing(file_id) as whole:
        for part_id in part_ids:
            with store.path(part_id).open("rb") as part:
                while chunk := part.read(_COPY_BYTES):
                    digest.update(chunk)
                    whole.write(chunk)
        if md5 is not None and digest.hexdigest() != md5.lower():
            raise ConfigError(
                f"The bytes that came have the MD5 {digest.hexdigest()}, but {md5} was expected; send the parts again",
                code="checksum_mismatch",
                param="md5",
            )


def end(session: Session, upload: Upload, status: str, *, file_id: str | None = None) -> list[str]:
    """Move a pending upload to `status`; return the ids of its parts, whose rows are gone.

    Raises ConflictError when somebody else ended it first.
    """
    move = (
        update(Upload)
        .where(Upload.id == upload.id, Upload.status == "pending")
        .values(status=status, file_id=file_id)
        .returning(Upload.id)
    )
    if session.scalars(move).one_or_none() is None:
        raise ConflictError(f"Upload {upload.id} has already ended; begin a new one", code="upload_not_pending")
    parts = delete(UploadPart).where(UploadPart.upload_id == upload.id).returning(UploadPart.id)
    gone = list(session.scalars(parts))
    session.refresh(upload)
    return gone


def expire(session: Session, *, limit: int) -> list[str]:
    """End uploads whose time is over; return the ids of their parts, whose rows are gone."""
    over = select(Upload).where(Upload.status == "pending", Upload.expires_at <= database_now())
    uploads = session.scalars(over.limit(limit).with_for_update(skip_locked=True)).all()
    return [part_id for upload in uploads for part_id in end(session, upload, "expired")]

"""Uploads: a large file in parts of at most 64 MiB, each a request of its own. A lost part is sent again alone."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from api import multipart
from api.dependencies import CurrentDatabase, CurrentFiles, CurrentPrincipal, CurrentSettings
from api.schemas.files import CompleteUpload, CreateUpload, UploadObject, UploadPartObject
from jenga_core.errors import ConflictError, TooLargeError
from jenga_core.service import audit
from jenga_core.service.accounts import quotas, teams
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.db.session import Database
from jenga_core.service.files import uploads
from jenga_core.service.files.registration import NewFile, register
from jenga_core.service.files.store import FileStore
from jenga_core.service.ids import new_id

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "format": "binary"}},
}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


@router.post("")
def create_upload(
    body: CreateUpload, principal: CurrentPrincipal, database: CurrentDatabase, settings: CurrentSettings
) -> UploadObject:
    """Begin an upload. It takes parts for an hour."""
    if body.bytes > settings.max_upload_bytes:
        raise TooLargeError(f"bytes is {body.bytes}; at most {settings.max_upload_bytes} are allowed", param="bytes")
    with database.writing() as session:
        quotas.check_storage(session, teams.get(session, principal.team_id, lock=True), body.bytes)
        upload = uploads.create(
            session,
            principal.team_id,
            bytes=body.bytes,
            filename=body.filename,
            purpose=body.purpose,
            file_expires_after_seconds=body.expires_after.seconds if body.expires_after else None,
        )
        audit.record(session, principal, "upload.create", upload.id, filename=body.filename, bytes=body.bytes)
        session.refresh(upload)
        return UploadObject.of(upload)


@router.post("/{upload_id}/parts", openapi_extra=_BODY)
async def create_part(
    upload_id: str, request: Request, principal: CurrentPrincipal, database: CurrentDatabase, store: CurrentFiles
) -> UploadPartObject:
    """Add a part. Parts may come in any order and at the same time."""
    await run_in_threadpool(_check_pending, database, principal, upload_id)
    part_id = new_id("part_")
    received = await multipart.receive(request, store, part_id, part="data")
    return await run_in_threadpool(_add_part, database, store, principal, upload_id, part_id, received.bytes)


def _check_pending(database: Database, principal: Principal, upload_id: str) -> None:
    with database.reading() as session:
        uploads.pending(session, principal.team_id, upload_id)


def _add_part(
    database: Database, store: FileStore, principal: Principal, upload_id: str, part_id: str, bytes: int
) -> UploadPartObject:
    try:
        with database.writing() as session:
            quotas.check_storage(session, teams.get(session, principal.team_id, lock=True), bytes)
            upload = uploads.pending(session, principal.team_id, upload_id, lock=True)
            part = uploads.add_part(session, upload, part_id, bytes)
            session.refresh(part)
            return UploadPartObject.of(part)
    except BaseException:
        store.delete(part_id)
        raise


@router.post("/{upload_id}/complete")
def complete_upload(
    upload_id: str,
    body: CompleteUpload,
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    store: CurrentFiles,
) -> UploadObject:
    """Make a file of the parts, in the order given, and check its rows as for a file that came in one request."""
    with database.reading() as session:
        upload = uploads.pending(session, principal.team_id, upload_id)
        uploads.check_parts(session, upload, body.part_ids)
    new = NewFile(new_id("file-"), upload.filename, upload.bytes, upload.purpose, upload.file_expires_after_seconds)
    try:
        uploads.assemble(store, body.part_ids, new.id, body.md5)
    except FileNotFoundError as error:
        raise ConflictError(
            f"Upload {upload_id} has ended while it was completed; begin a new one", code="upload_not_pending"
        ) from error
    gone: list[str] = []

    def end(session: Session) -> int:
        before = quotas.storage_bytes(session, principal.team_id)
        ours = uploads.get(session, principal.team_id, upload_id)
        gone.extend(uploads.end(session, ours, "completed", file_id=new.id))
        audit.record(session, principal, "upload.complete", upload_id, file_id=new.id)
        return before - quotas.storage_bytes(session, principal.team_id)

    file = register(database, store, principal, new, before=end)
    for part_id in gone:
        store.delete(part_id)
    with database.reading() as session:
        return UploadObject.of(uploads.get(session, principal.team_id, upload_id), file)


@router.post("/{upload_id}/cancel")
def cancel_upload(
    upload_id: str, principal: CurrentPrincipal, database: CurrentDatabase, store: CurrentFiles
) -> UploadObject:
    """Forget an upload and its parts. 409 once it has ended."""
    with database.writing() as session:
        upload = uploads.pending(session, principal.team_id, upload_id)
        gone = uploads.end(session, upload, "cancelled")
        audit.record(session, principal, "upload.cancel", upload_id)
        cancelled = UploadObject.of(upload)
    for part_id in gone:
        store.delete(part_id)
    return cancelled

"""Files: uploads, and what jobs leave behind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from api import multipart
from api.dependencies import After, CurrentDatabase, CurrentFiles, CurrentPrincipal
from api.errors import BadRequest
from api.schemas.files import FileDeleted, FileObject
from api.schemas.lists import ListOf
from jenga_core.errors import DataError, NotFoundError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import StoredFile
from jenga_core.service.db.session import Database
from jenga_core.service.files import repository
from jenga_core.service.files.check import count_rows
from jenga_core.service.files.store import FileStore
from jenga_core.service.ids import new_id

router = APIRouter(prefix="/files", tags=["files"])

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": [repository.UPLOAD_PURPOSE]},
    },
}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


@router.post("", openapi_extra=_BODY)
async def create_file(
    request: Request, principal: CurrentPrincipal, database: CurrentDatabase, store: CurrentFiles
) -> FileObject:
    """Upload a JSONL file to train on.

    Its rows are checked before the answer: `status` is `processed`, or `error` with the row and the reason in
    `status_details`. The parts may come in any order.
    """
    file_id = new_id("file-")
    upload = await multipart.receive(request, store, file_id)
    return await run_in_threadpool(_check_and_register, upload, file_id, principal.team_id, database, store)


def _check_and_register(
    upload: multipart.Upload, file_id: str, team_id: str, database: Database, store: FileStore
) -> FileObject:
    try:
        _check_fields(upload.fields)
        rows, problem = None, None
        try:
            rows = count_rows(store.path(file_id))
        except DataError as error:
            problem = error.message
        with database.writing() as session:
            file = StoredFile(
                id=file_id,
                team_id=team_id,
                purpose=upload.fields["purpose"],
                filename=upload.filename,
                bytes=upload.bytes,
                rows=rows,
                status="error" if problem else "processed",
                status_details=problem.replace("\0", "\N{SYMBOL FOR NULL}") if problem else None,
                created_at=database_now(),
            )
            session.add(file)
            session.flush()
            return FileObject.of(file)
    except BaseException:
        store.delete(file_id)
        raise


def _check_fields(fields: dict[str, str]) -> None:
    purpose = fields.get("purpose")
    if purpose is None:
        raise BadRequest("The form has no field 'purpose'", code="missing_required_parameter", param="purpose")
    if purpose != repository.UPLOAD_PURPOSE:
        wanted = f"files are uploaded for {repository.UPLOAD_PURPOSE!r}"
        raise BadRequest(f"purpose is {purpose!r}; {wanted}", code="invalid_purpose", param="purpose")
    for name in fields.keys() - {"purpose"}:
        raise BadRequest(f"Unknown form field {name!r}", code="unknown_parameter", param=name)


@router.get("")
def list_files(
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> ListOf[FileObject]:
    """The team's files."""
    with database.reading() as session:
        page = repository.page(
            session, principal.team_id, after=after, limit=limit, newest_first=order == "desc", purpose=purpose
        )
        return ListOf[FileObject].of(page, FileObject.of)


@router.get("/{file_id}")
def retrieve_file(file_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FileObject:
    """One file."""
    with database.reading() as session:
        return FileObject.of(repository.get(session, principal.team_id, file_id))


@router.delete("/{file_id}")
def delete_file(
    file_id: str, principal: CurrentPrincipal, database: CurrentDatabase, store: CurrentFiles
) -> FileDeleted:
    """Delete a file. 409 while a job that has not ended needs it."""
    with database.writing() as session:
        repository.delete(session, principal.team_id, file_id)
    store.delete(file_id)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=FileResponse)
def file_content(
    file_id: str, principal: CurrentPrincipal, database: CurrentDatabase, store: CurrentFiles
) -> FileResponse:
    """The bytes, as they came."""
    with database.reading() as session:
        file = repository.get(session, principal.team_id, file_id)
    path = store.path(file.id)
    if not path.exists():
        raise NotFoundError(f"The bytes of file {file_id} are gone from the file store")
    return FileResponse(path, media_type="application/octet-stream", filename=file.filename)

"""Files: uploads in one request, and what jobs leave behind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import ValidationError

from api import multipart
from api.dependencies import After, CurrentDatabase, CurrentFiles, CurrentPrincipal
from api.errors import BadRequest
from api.schemas.files import ExpiresAfter, FileDeleted, FileObject
from api.schemas.lists import ListOf
from jenga_core.errors import NotFoundError
from jenga_core.service import audit
from jenga_core.service.accounts import quotas, teams
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.db.session import Database
from jenga_core.service.files import repository
from jenga_core.service.files.registration import NewFile, register
from jenga_core.service.ids import new_id

router = APIRouter(prefix="/v1/files", tags=["files"])

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": [repository.UPLOAD_PURPOSE]},
        _ANCHOR: {"type": "string", "enum": ["created_at"]},
        _SECONDS: {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
_BYTES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/octet-stream": {"schema": {"format": "binary"}}}}
    for status, text in ((200, "The whole file"), (206, "The range that was asked for"))
}


@router.post("", openapi_extra=_BODY)
async def create_file(
    request: Request, principal: CurrentPrincipal, database: CurrentDatabase, store: CurrentFiles
) -> FileObject:
    """Upload a JSONL file to train on.

    Its rows are checked before the answer: `status` is `processed`, or `error` with the row and the reason in
    `status_details`. The parts may come in any order.
    """
    announced = request.headers.get("content-length", "0")
    await run_in_threadpool(_check_room, database, principal, int(announced) if announced.isdecimal() else 0)
    file_id = new_id("file-")
    upload = await multipart.receive(request, store, file_id)
    try:
        purpose, expires_after = _fields_of(upload.fields)
    except BaseException:
        store.delete(file_id)
        raise
    seconds = expires_after.seconds if expires_after else None
    new = NewFile(file_id, upload.filename, upload.bytes, purpose, seconds)
    return FileObject.of(await run_in_threadpool(register, database, store, principal, new))


def _check_room(database: Database, principal: Principal, announced_bytes: int) -> None:
    """Refuse what would not fit before it is sent; `register` decides, when the size is known."""
    with database.reading() as session:
        quotas.check_storage(session, teams.get(session, principal.team_id), announced_bytes)


def _fields_of(fields: dict[str, str]) -> tuple[str, ExpiresAfter | None]:
    purpose = fields.get("purpose")
    if purpose is None:
        raise BadRequest("The form has no field 'purpose'", code="missing_required_parameter", param="purpose")
    if purpose != repository.UPLOAD_PURPOSE:
        wanted = f"files are uploaded for {repository.UPLOAD_PURPOSE!r}"
        raise BadRequest(f"purpose is {purpose!r}; {wanted}", code="invalid_purpose", param="purpose")
    for name in fields.keys() - {"purpose", _ANCHOR, _SECONDS}:
        raise BadRequest(f"Unknown form field {name!r}", code="unknown_parameter", param=name)
    if not fields.keys() & {_ANCHOR, _SECONDS}:
        return purpose, None
    try:
        return purpose, ExpiresAfter.model_validate({"anchor": fields.get(_ANCHOR), "seconds": fields.get(_SECONDS)})
    except ValidationError as error:
        first = error.errors()[0]
        param = f"expires_after[{first['loc'][0]}]"
        raise BadRequest(
            f"{param}: {first['msg']} (got {first['input']!r})", code="invalid_value", param=param
        ) from error


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
        audit.record(session, principal, "file.delete", file_id)
    store.delete(file_id)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=FileResponse, responses=_BYTES)
def file_content(
    file_id: str, principal: CurrentPrincipal, database: CurrentDatabase, store: CurrentFiles
) -> FileResponse:
    """The bytes, as they came; with a `Range` header, those asked for."""
    with database.reading() as session:
        file = repository.get(session, principal.team_id, file_id)
    path = store.path(file.id)
    if not path.exists():
        raise NotFoundError(f"The bytes of file {file_id} are gone from the file store")
    return FileResponse(path, media_type="application/octet-stream", filename=file.filename)

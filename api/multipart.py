"""A multipart form, streamed from the socket into the file store at constant memory.

Starlette's own form parser would first collect the file in the system's temporary folder, which may be small or may be
memory, and then we would copy it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from api.errors import BadRequest
from jenga_core.service.files.store import FileStore

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # exists for type checkers only

FLUSH_BYTES = 2**20
"""How much of the file is held before a thread writes it."""

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16


@dataclass
class _Form:
    """Callbacks of the parser: the part named `wanted` piles up in `pending`, all others in `fields`."""

    wanted: str
    fields: dict[str, bytearray] = field(default_factory=dict)
    filename: str | None = None
    pending: bytearray = field(default_factory=bytearray)
    received_bytes: int = 0
    complete: bool = False
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _disposition: bytes = b""
    _target: bytearray | None = None

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self._disposition, self._target = b"", None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == self.wanted:
            if self.filename is not None:
                raise BadRequest(f"Two parts are named {name!r}; send one at a time", param=name)
            self.filename = _display_name(options.get(b"filename", b""))
            self._target = self.pending
        elif name in self.fields or len(self.fields) >= MAX_FIELDS:
            raise BadRequest(f"The form field {name!r} is given twice, or follows {MAX_FIELDS} others", param=name)
        else:
            self._target = self.fields[name] = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._target is not None
        self._target.extend(memoryview(data)[start:end])
        if self._target is self.pending:
            self.received_bytes += end - start
        elif len(self._target) > MAX_FIELD_BYTES:
            raise BadRequest(f"A form field has over {MAX_FIELD_BYTES} bytes; the bytes belong in {self.wanted!r}")

    def on_end(self) -> None:
        self.complete = True


@dataclass(frozen=True)
class Upload:
    """What came: the file lies in the store."""

    filename: str
    bytes: int
    fields: dict[str, str]


async def receive(request: Request, store: FileStore, file_id: str, *, part: str = "file") -> Upload:
    """Stream the part of that name into the store under `file_id`.

    Raises BadRequest for a body that is no multipart form or has no file; then, and when the caller hangs up, nothing
    is kept.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadRequest(f"The body must be multipart/form-data, with the bytes in the part {part!r}")
    form = _Form(part)
    async with contextmanager_in_threadpool(store.writing(file_id)) as file:
        try:
            parser = MultipartParser(options[b"boundary"], form.callbacks())
            async for chunk in request.stream():
                parser.write(chunk)
                if len(form.pending) >= FLUSH_BYTES:
                    await run_in_threadpool(_flush, form.pending, file)
        except FormParserError as error:
            raise BadRequest(f"The multipart body is malformed: {error}") from error
        if not form.complete:
            raise BadRequest("The multipart body ends before its closing boundary; send the file again")
        if form.filename is None:
            raise BadRequest(f"The form has no part named {part!r}", code="missing_required_parameter", param=part)
        await run_in_threadpool(_flush, form.pending, file)
    fields = {name: bytes(value).decode("utf-8", "replace") for name, value in form.fields.items()}
    return Upload(form.filename, form.received_bytes, fields)


def _flush(pending: bytearray, file: BinaryIO) -> None:
    file.write(pending)
    pending.clear()


def _display_name(raw: bytes) -> str:
    """A filename for people: no folders, nothing unprintable, at most 255 characters."""
    name = raw.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in name if character.isprintable())[:255] or "upload"

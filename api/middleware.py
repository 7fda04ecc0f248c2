"""What happens to every request before its route, in pure ASGI: nothing here reads a body.

    Envelope    request id, security headers, and an answer for exceptions that nobody expected
    Gate        the body's size, then, below /v1, the API key
    (routes)

A framework that authenticates in a route has parsed the body by then: with a wrong key it would still spool a whole
upload to disk. The gate answers 401 and 413 without reading, and counts what it lets through.
"""

from __future__ import annotations

import logging

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import principal_of
from api.errors import BadRequest, error_response, response_of
from jenga_core.errors import JengaError, TooLargeError
from jenga_core.service.db.session import Database
from jenga_core.service.ids import new_id
from jenga_core.service.settings import Settings

MAX_JSON_BYTES = 2**20
"""Largest body of a request that is not an upload."""

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    # For answers that are data; a page brings its own.
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}

log = logging.getLogger(__name__)


class Envelope:
    """Outermost: `x-request-id` and security headers on every answer, also on the 500 that it makes itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started = new_id("req_"), False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            log.exception("%s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # too late to say anything else: the server cuts the connection
            message = f"Something went wrong on this server. Its log has the reason, under {request_id}."
            response = error_response(500, message, code="internal_error")
            await response(scope, receive, send_with_headers)


class Gate:
    """Refuses a body over the cap, and below /v1 a request without a key; sets `request.state.principal`."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self.app = app
        self.settings = settings
        self.database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        limit = self.settings.max_upload_bytes if path == "/v1/files" else MAX_JSON_BYTES
        connection = HTTPConnection(scope)
        try:
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise BadRequest("NUL characters are not allowed in an address")
            if path == "/v1" or path.startswith("/v1/"):
                principal = await run_in_threadpool(
                    principal_of, connection, self.database, pepper=self.settings.pepper
                )
                scope.setdefault("state", {})["principal"] = principal
            announced = connection.headers.get("content-length", "0")
            if announced.isdecimal() and int(announced[:20]) > limit:
                raise TooLargeError(_too_large(f"{announced} bytes", limit))
        except JengaError as error:
            await response_of(error)(scope, receive, send)
            return
        await self.app(scope, _counting(receive, limit), send)


def _counting(receive: Receive, limit: int) -> Receive:
    """`receive` that stops a body, announced or not, at `limit` bytes."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            # FastAPI lets an HTTPException through where it makes every other exception "cannot parse the body".
            raise HTTPException(413, _too_large(f"more than {limit} bytes", limit))
        return message

    return counted


def _too_large(got: str, limit: int) -> str:
    return f"The body has {got}; at most {limit} are allowed here"

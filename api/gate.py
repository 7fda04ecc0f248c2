"""What a request must pass before its route, in pure ASGI: nothing here reads a body.

    below /v1      the API key, its scope, its rate
    everywhere     the body's size

A framework that authenticates in a route has parsed the body by then: with a wrong key it would still spool a whole
upload to disk. The gate answers 401, 403, 429 and 413 without reading, and counts what it lets through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import check_scope, principal_of
from api.errors import BadRequest, RateLimited, response_of
from jenga_core.errors import JengaError, TooLargeError
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.accounts.rate_limit import Allowance, RateLimiter
from jenga_core.service.db.session import Database
from jenga_core.service.files.uploads import MAX_PART_BYTES
from jenga_core.service.settings import Settings

MAX_JSON_BYTES = 2**20
"""Largest body of a request that is not an upload."""

MULTIPART_BYTES = 2**16
"""What a form may add to the part in it, whose size clients choose to be the largest allowed."""

_PART = re.compile(r"/v1/uploads/[^/]+/parts")


class Gate:
    """Refuses, below /v1, a request without a key that may make it, and everywhere a body over the cap.

    Sets `request.state.principal`.
    """

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self.app = app
        self.settings = settings
        self.database = database
        self.rates = RateLimiter(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        limit = self._limit(path)
        connection = HTTPConnection(scope)
        headers: Mapping[str, str] = {}
        try:
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise BadRequest("NUL characters are not allowed in an address")
            if path == "/v1" or path.startswith("/v1/"):
                principal, allowance = await run_in_threadpool(self._admit, connection, path)
                scope.setdefault("state", {})["principal"] = principal
                headers = _rate_headers(allowance)
                if allowance is not None and not allowance.allowed:
                    raise RateLimited(_too_often(allowance))
            announced = connection.headers.get("content-length", "0")
            if announced.isdecimal() and int(announced[:20]) > limit:
                raise TooLargeError(_too_large(f"{announced} bytes", limit))
        except JengaError as error:
            await response_of(error, headers)(scope, receive, send)
            return
        await self.app(scope, _counting(receive, limit), _adding(send, headers))

    def _admit(self, connection: HTTPConnection, path: str) -> tuple[Principal, Allowance | None]:
        principal = principal_of(connection, self.database, pepper=self.settings.pepper)
        check_scope(principal, connection, path)
        return principal, self.rates.count(principal.key_id)

    def _limit(self, path: str) -> int:
        """Largest body at this address, in bytes."""
        if path == "/v1/files":
            return self.settings.max_upload_bytes
        return MAX_PART_BYTES + MULTIPART_BYTES if _PART.fullmatch(path) else MAX_JSON_BYTES


def _rate_headers(allowance: Allowance | None) -> dict[str, str]:
    """OpenAI's names; nothing when nothing is counted."""
    if allowance is None:
        return {}
    headers = {
        "x-ratelimit-limit-requests": str(allowance.limit),
        "x-ratelimit-remaining-requests": str(allowance.remaining),
        "x-ratelimit-reset-requests": f"{math.ceil(allowance.reset_seconds)}s",
    }
    return headers if allowance.allowed else {**headers, "retry-after": str(math.ceil(allowance.reset_seconds))}


def _adding(send: Send, headers: Mapping[str, str]) -> Send:
    """`send` that puts these headers on the answer."""

    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return adding if headers else send


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


def _too_often(allowance: Allowance) -> str:
    wait = math.ceil(allowance.reset_seconds)
    return f"This key has made its {allowance.limit} requests of this minute; ask again in {wait} s"

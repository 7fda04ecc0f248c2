"""ETag and 304 for whatever a page polls, in pure ASGI.

Every JSON answer to a GET below /v1 carries a hash of its bytes; a caller that sends it back in `If-None-Match` gets
304 and no body while nothing has changed. Streams and downloads pass untouched: only a body that comes in one piece is
looked at.
"""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Revalidation:
    """Adds `ETag` and `Cache-Control`; answers 304."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] != "GET" or not path.startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        known = _tags(Headers(scope=scope).get("if-none-match", ""))
        held: Message | None = None

        async def revalidating(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and _is_json(message):
                held = message
                return
            if held is not None and message["type"] == "http.response.body":
                start, held = held, None
                if not message.get("more_body"):
                    start, message = _tagged(start, message, known)
                await send(start)
            await send(message)

        await self.app(scope, receive, revalidating)


def _is_json(start: Message) -> bool:
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type", "") == "application/json"


def _tagged(start: Message, body: Message, known: set[str]) -> tuple[Message, Message]:
    """The answer with its tag, or in its place 304."""
    tag = f'"{hashlib.blake2b(body["body"], digest_size=16).hexdigest()}"'
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["etag"], headers["cache-control"] = tag, "private, no-cache"
    if tag not in known and "*" not in known:
        return {**start, "headers": headers.raw}, body
    del headers["content-length"], headers["content-type"]
    return {**start, "status": 304, "headers": headers.raw}, {**body, "body": b""}


def _tags(header: str) -> set[str]:
    """The tags of `If-None-Match`; a weak one counts as its strong twin, as RFC 9110 wants for GET."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")} - {""}

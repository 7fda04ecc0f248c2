"""Around every request, in pure ASGI: a request id, security headers, an answer for exceptions that nobody expected, an
end to connections whose body nobody wants."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from jenga_core.service.ids import new_id

DRAINED_BYTES = 2**18
"""So much of a body that nobody wants is read to keep the connection; for a larger one the connection ends."""

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    # For answers that are data; a page brings its own.
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
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
        scope.setdefault("state", {})["request_id"] = request_id
        unread = _announces_a_large_body(Headers(scope=scope))

        async def receive_to_the_end() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body"))
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if unread:  # else the server would read and drop the rest, to keep the connection
                    headers["connection"] = "close"
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive_to_the_end, send_with_headers)
        except Exception:
            log.exception("%s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise  # too late to say anything else: the server cuts the connection
            message = f"Something went wrong on this server. Its log has the reason, under {request_id}."
            response = error_response(500, message, code="internal_error")
            await response(scope, receive, send_with_headers)


def _announces_a_large_body(headers: Headers) -> bool:
    """More than is worth reading for the sake of the connection, or nobody knows how much."""
    announced = headers.get("content-length", "0")
    return "transfer-encoding" in headers or (announced.isdecimal() and int(announced[:20]) > DRAINED_BYTES)

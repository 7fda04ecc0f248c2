"""Every error in OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`, exactly these four keys.

`openai` raises from the status and fills `err.code`, `err.param` and `err.type` from the envelope; FastAPI's own
`{"detail": ...}` would leave them None. The client repeats a request that got 409 or 429, so an answer that would be
the same again says `x-should-retry: false`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jenga_core.errors import JengaError
from jenga_core.service.accounts.quotas import QuotaExceeded

_TYPES = {403: "permission_error", 409: "conflict_error", 429: "rate_limit_error"}
_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "file_too_large"}
_VALIDATION_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}


class BadRequest(JengaError):
    """A request that is wrong in a way no other class names."""

    status, code = 400, "invalid_request"


class Forbidden(JengaError):
    """A valid key, but not for this."""

    status, code = 403, "insufficient_permissions"


class RateLimited(JengaError):
    """The key has made all the requests that it may make in this minute."""

    status, code = 429, "rate_limit_exceeded"


class Unavailable(JengaError):
    """Something this server needs does not answer; asking again later may help."""

    status, code = 503, "unavailable"


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One error as an HTTP answer."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}
    extra = {401: {"www-authenticate": "Bearer"}, 409: {"x-should-retry": "false"}}.get(status, {})
    # Plain json.dumps escapes what UTF-8 cannot carry: messages quote what the caller sent, lone surrogates included.
    return Response(
        json.dumps({"error": error}), status, headers={**(headers or {}), **extra}, media_type="application/json"
    )


def response_of(error: JengaError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to something that Jenga raised on purpose."""
    final = {"x-should-retry": "false"} if isinstance(error, QuotaExceeded) else {}
    headers = {**(headers or {}), **final}
    return error_response(error.status, error.message, code=error.code, param=error.param, headers=headers)


def install(app: FastAPI, missing_page: Callable[[Request], Response]) -> None:
    """Put the handlers in place. Whatever they do not know is a 500, which the outermost middleware answers.

    Who asks for a page (a browser) at an address that does not exist gets `missing_page`.
    """

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and "text/html" in request.headers.get("accept", ""):
            return missing_page(request)
        return _http_error(request, error)

    app.add_exception_handler(JengaError, _jenga_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, http_error)


def _jenga_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, JengaError)
    return response_of(error)


def _http_error(request: Request, error: HTTPException) -> Response:
    message = error.detail
    if error.status_code in (404, 405):
        message = f"{message}: there is no {request.method} {request.url.path}"
        mount = request.scope.get("root_path", "")
        path = f"/v1{request.scope['path'].removeprefix(mount)}"
        below = {**request.scope, "path": mount + path}
        if any(route.matches(below)[0] is Match.FULL for route in request.app.routes):
            message += f"; there is {request.method} {path}: let the client's base URL end with /v1"
    return error_response(error.status_code, message, headers=error.headers)


def _validation_error(_request: Request, error: Exception) -> Response:
    """The first thing wrong, as 400 like OpenAI's, with the field's path in `param`."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    kind, place = first["type"], first["loc"]
    if kind == "json_invalid":
        return error_response(400, f"The body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    param = ".".join(str(part) for part in place[1:]) or None  # place[0] says body, query or path
    message = f"{param or 'The body'}: {_in_words(first)}"
    return error_response(400, message, code=_VALIDATION_CODES.get(kind, "invalid_value"), param=param)


def _in_words(error: dict[str, Any]) -> str:
    """What is wrong, what was got, and what to do about it."""
    kind, what = error["type"], error["msg"].removeprefix("Value error, ")
    if kind.endswith(("too_long", "too_short")) and isinstance(error["input"], str):
        length = len(error["input"])
        if kind.endswith("too_long"):
            limit = error["ctx"]["max_length"]
            return f"{length} characters were given, at most {limit} are allowed; shorten it by {length - limit}"
        return f"{length} characters were given, at least {error['ctx']['min_length']} are needed; or leave it out"
    if kind == "missing":
        return "this field is required, and it was not given"
    if kind == "extra_forbidden":
        return "there is no such field; leave it out, or look for its name at /openapi.json"
    return what if kind == "value_error" else f"{what} (got {_short(error['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."

"""The OpenAPI description: FastAPI's own, with what it cannot know: keys, our errors, and an example of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.examples import EXAMPLES

DESCRIPTION = """\
OpenAI's fine-tuning API on your own machines. The official client needs only `base_url` and `api_key`; what Jenga adds
is in the object `jenga` of a job, and at addresses that OpenAI does not have.

Every answer has the header `x-request-id`. Lists are walked with `after`, the id of the last object of the page before.
What can be polled has an `ETag`; send it back in `If-None-Match` and get 304 while nothing has changed.
"""

_STRING, _NULLABLE = {"type": "string"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {"message": _STRING, "type": _STRING, "param": _NULLABLE, "code": _NULLABLE},
        }
    },
    "example": {
        "error": {
            "message": "suffix: 70 characters were given, at most 64 are allowed; shorten it by 6",
            "type": "invalid_request_error",
            "param": "suffix",
            "code": "invalid_value",
        }
    },
}


def describer(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What `app.openapi` should be: the description, made at the first call."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=DESCRIPTION,
                routes=app.routes,
                separate_input_output_schemas=False,
            )
            components = made.setdefault("components", {})
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            components["schemas"]["Error"] = _ERROR
            for unused in ("HTTPValidationError", "ValidationError"):  # our own errors take their place
                components["schemas"].pop(unused, None)
            for path, item in made["paths"].items():
                for method, operation in item.items():
                    _complete(operation, method.upper(), path)
            app.openapi_schema = made
        return app.openapi_schema

    return openapi


def _complete(operation: dict[str, Any], method: str, path: str) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    answers["4XX"] = answers["5XX"] = {
        "description": "Refused, or failed",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if path.startswith("/v1/") or path == "/metrics":
        operation["security"] = [{"key": []}]
    example = EXAMPLES.get((method, path))
    if example is None:
        return
    for kind, content in answers["200"].get("content", {}).items():
        if kind == "application/json" or isinstance(example.response, str):
            content["example"] = example.response
    if example.request is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = example.request

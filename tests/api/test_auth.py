"""No key, no entry: nothing of a stranger's body is read. Who may do what with a key is in test_tenancy.py."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from typing import Any

import anyio
import pytest
from fastapi.routing import APIRoute

from api import routes as api_routes
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey
from tests.api.conftest import ROW, Api, error_of


def _operations(api: Api) -> list[tuple[str, str]]:
    """Method and path of every route below /v1, from the OpenAPI description, so a new route cannot be forgotten."""
    paths = api.app.openapi()["paths"]
    return [(method.upper(), path) for path, item in paths.items() if path.startswith("/v1/") for method in item]


_STRANGERS: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer jenga_000000000000_nothing"},
    {"Authorization": "Bearer "},
    {"Authorization": "Basic dXNlcjpwYXNz"},
    {"Cookie": "jenga_key=wrong"},
]


def test_every_route_refuses_strangers(api: Api, subtests: pytest.Subtests) -> None:
    operations = _operations(api)
    assert len(operations) >= 15
    for headers in _STRANGERS:
        with subtests.test(headers=headers):
            for method, path in operations:
                response = api.anonymous().request(method, re.sub(r"\{.*?\}", "x", path), headers=headers)
                error = error_of(response, 401)
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_opens_nothing(api: Api) -> None:
    assert api.client.get("/v1/models").status_code == 200
    with api.database.writing() as session:
        session.get_one(ApiKey, api.key.split("_")[1]).revoked_at = database_now()
    error_of(api.client.get("/v1/models"), 401)


def test_the_cookie_reads(api: Api) -> None:
    assert api.anonymous().get("/v1/models", headers={"Cookie": f"jenga_key={api.key}"}).status_code == 200


_ORIGINS: list[tuple[dict[str, str], int]] = [
    ({}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Origin": "http://testserver"}, 200),
]


def test_the_cookie_changes_things_from_our_own_pages_only(api: Api, subtests: pytest.Subtests) -> None:
    for headers, status in _ORIGINS:
        with subtests.test(headers=headers):
            job_id = api.create().json()["id"]
            cookie = {"Cookie": f"jenga_key={api.key}"}
            response = api.anonymous().post(f"/v1/fine_tuning/jobs/{job_id}/cancel", headers={**cookie, **headers})
            assert response.status_code == status
            if status == 403:
                error = error_of(response, 403)
                assert (error["type"], error["code"]) == ("permission_error", "cross_site_request")


def _call(api: Api, path: str, headers: dict[str, str], chunk: bytes, chunks: int) -> tuple[int, int]:
    """POST to the bare ASGI application; status, and how many of the body's chunks were asked for."""
    asked = 0
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": chunk, "more_body": asked < chunks}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "server": ("testserver", 80),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    anyio.run(api.app, scope, receive, send)
    return statuses[0], asked


MULTIPART = {"content-type": "multipart/form-data; boundary=B"}
HEAD = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def test_a_strangers_body_is_not_read(api: Api) -> None:
    headers = {**MULTIPART, "authorization": "Bearer wrong", "content-length": str(64 * 2**20)}
    assert _call(api, "/v1/files", headers, b"x" * 2**16, chunks=1024) == (401, 0)
    assert not list(api.app.state.files.folder.glob(".partial-*"))


def test_an_announced_body_over_the_cap_is_not_read(api: Api) -> None:
    api.app.state.settings.__dict__["max_upload_bytes"] = 1000
    headers = {**MULTIPART, "authorization": f"Bearer {api.key}", "content-length": "1001"}
    assert _call(api, "/v1/files", headers, ROW, chunks=9) == (413, 0)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs"])
def test_a_body_of_unknown_length_is_cut_off_at_the_cap(api: Api, path: str) -> None:
    api.app.state.settings.__dict__["max_upload_bytes"] = 2**20
    headers = {**MULTIPART, "authorization": f"Bearer {api.key}"}
    before = sorted(api.app.state.files.folder.iterdir())
    assert _call(api, path, headers, HEAD + b"x" * (2**18 - len(HEAD)), chunks=1000) == (413, 5)
    assert sorted(api.app.state.files.folder.iterdir()) == before


def test_what_is_described_is_what_the_modules_serve_below_v1(api: Api) -> None:
    """The matrices of this folder are made of the description; a route that it leaves out would escape them."""
    served = {
        (method, route.path.replace(":path}", "}"))
        for module in pkgutil.iter_modules(api_routes.__path__)
        for route in import_module(f"api.routes.{module.name}").router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    below_v1 = {(method, path) for method, path in served if path.startswith("/v1")}
    assert below_v1 == set(_operations(api))
    assert len(below_v1) >= 35

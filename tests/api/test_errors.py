"""Every answer carries a request id; every error is the envelope, with the type and code that clients act on."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jenga_core.service.settings import Settings
from tests.api.conftest import Api, error_of


def test_request_ids_differ(api: Api) -> None:
    first, second = (api.client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first.startswith("req_")
    assert first != second


def test_data_cannot_be_run_as_a_page(api: Api) -> None:
    headers = api.client.get("/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]


_WRONG_ADDRESSES = [
    ("GET", "/v1/nothing", 404, "not_found"),
    ("GET", "/v1/files/", 404, "not_found"),
    ("GET", "/nothing/here", 404, "not_found"),
    ("PUT", "/v1/files", 405, "method_not_allowed"),
    ("GET", "/v1/files/file-unknown", 404, "not_found"),
    ("GET", "/v1/files/..%2F..%2Fetc%2Fpasswd", 404, "not_found"),
    ("GET", "/v1/files/file-%00", 400, "invalid_request"),
    ("GET", "/v1/fine_tuning/jobs?after=a%00", 400, "invalid_request"),
    ("GET", "/v1/fine_tuning/jobs/ftjob-unknown", 404, "not_found"),
    ("POST", "/v1/fine_tuning/jobs/ftjob-unknown/cancel", 404, "not_found"),
    ("GET", "/v1/models/org/unknown", 404, "model_not_found"),
    ("GET", "/v1/files?limit=0", 400, "invalid_value"),
    ("GET", "/v1/files?order=sideways", 400, "invalid_value"),
]


def test_wrong_addresses(api: Api, subtests: pytest.Subtests) -> None:
    for method, path, status, code in _WRONG_ADDRESSES:
        with subtests.test(method=method, path=path):
            error = error_of(api.client.request(method, path), status)
            assert error["type"] == "invalid_request_error"
            assert error["code"] == code


def test_an_address_that_lacks_v1_is_told_where_it_is(api: Api) -> None:
    for method, path in (("GET", "/models"), ("POST", "/fine_tuning/jobs"), ("DELETE", "/files/file-1")):
        message = error_of(api.client.request(method, path), 404)["message"]
        assert f"there is no {method} {path}; there is {method} /v1{path}: " in message
    for method, path in (("GET", "/nothing"), ("GET", "/v1/nothing"), ("PUT", "/files")):
        assert error_of(api.client.request(method, path), 404)["message"].endswith(f"there is no {method} {path}")
    mounted = TestClient(api.client.app, root_path="/tools/jenga").get("/tools/jenga/models")
    assert "there is GET /v1/models: " in error_of(mounted, 404)["message"]


_NO_REQUESTS = [
    (b'{"model": ', "invalid_json"),
    (b"[1, 2]", "invalid_value"),
    (b"", "missing_required_parameter"),
    (b"[" * 100_000, "invalid_request"),
    (b"{}", "missing_required_parameter"),
]


def test_bodies_that_are_no_request(api: Api, subtests: pytest.Subtests) -> None:
    for content, code in _NO_REQUESTS:
        with subtests.test(content=content[:20]):
            response = api.client.post(
                "/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"}
            )
            assert error_of(response, 400)["code"] == code


def test_json_over_the_cap_is_refused(api: Api) -> None:
    response = api.client.post("/v1/fine_tuning/jobs", json=api.body(suffix="x" * 2**20))
    error = error_of(response, 413)
    assert (error["type"], error["code"]) == ("invalid_request_error", "file_too_large")


def test_a_bug_is_a_500_with_an_id_that_the_log_has(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("jenga_core.service.jobs.repository.get", broken)
    response = api.client.get("/v1/fine_tuning/jobs/ftjob-1")
    error = error_of(response, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in error["message"]
    assert response.headers["x-request-id"] in error["message"]
    assert response.headers["x-request-id"] in caplog.text
    assert "secret detail" in caplog.text


def test_health_is_open(api: Api) -> None:
    response = api.anonymous().get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    response = api.anonymous().get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "database": "ok", "files": "ok"})


def test_not_ready_without_a_file_store(api: Api) -> None:
    api.app.state.files.folder = api.settings.data_dir / "unmounted"
    assert error_of(api.anonymous().get("/readyz"), 503)["code"] == "files_unavailable"


def test_not_ready_on_a_database_without_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = Settings(data_dir=tmp_path_factory.mktemp("empty"), broker_url="memory://")
    app = create_app(settings)
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        error = error_of(client.get("/readyz"), 503)
    assert (error["type"], error["code"]) == ("server_error", "database_unavailable")


def test_starts_without_a_broker(tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(data_dir=tmp_path_factory.mktemp("no-broker"))
    with TestClient(create_app(settings)):
        assert "no broker" in caplog.text

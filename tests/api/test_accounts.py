"""Keys, teams, quotas and the audit log, as administrators use them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from jenga_core.service.accounts import keys
from jenga_core.service.accounts.keys import LAST_USED_SECONDS
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey, Job, Team
from jenga_core.service.jobs.state import JobState
from tests.api.conftest import ROW, Api, error_of
from tests.support.jobs import force, submit_job


def make_key(api: Api, **fields: Any) -> dict[str, Any]:
    response = api.client.post("/v1/keys", json={"name": "ci", **fields})
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def client_with(api: Api, key: str) -> TestClient:
    return TestClient(api.app, headers={"Authorization": f"Bearer {key}"})


def set_quotas(api: Api, **quotas: Any) -> None:
    response = api.client.post(f"/v1/teams/{api.seeded.team_id}", json={"quotas": quotas})
    assert response.status_code == 200, response.text


def test_a_key_is_shown_once_and_works_until_it_is_revoked(api: Api) -> None:
    made = make_key(api, scopes=["write", "read", "write"])
    secret = made.pop("secret")
    assert secret.startswith(f"jenga_{made['id']}_")
    assert made == {
        "id": made["id"],
        "object": "api_key",
        "name": "ci",
        "team_id": api.seeded.team_id,
        "scopes": ["read", "write"],
        "created_at": made["created_at"],
        "expires_at": None,
        "last_used_at": None,
        "revoked_at": None,
    }
    client = client_with(api, secret)
    assert client.get("/v1/me").json()["key"] == {"id": made["id"], "name": "ci", "scopes": ["read", "write"]}
    listed = api.client.get("/v1/keys")
    assert secret[-40:] not in listed.text
    assert [key["id"] for key in listed.json()["data"]] == [made["id"], api.key.split("_")[1]]

    revoked = api.client.delete(f"/v1/keys/{made['id']}").json()
    assert revoked["revoked_at"] is not None
    error_of(client.get("/v1/me"), 401)
    assert api.client.delete(f"/v1/keys/{made['id']}").json()["revoked_at"] == revoked["revoked_at"]
    error_of(api.client.delete("/v1/keys/unknown"), 404)


def test_only_an_hmac_of_the_key_is_stored(api: Api) -> None:
    secret = make_key(api)["secret"]
    with api.database.reading() as session:
        row = session.get_one(ApiKey, secret.split("_")[1])
        assert secret.split("_")[2] not in "".join(str(value) for value in vars(row).values())
        assert len(row.digest) == 64


def test_an_expired_key_opens_nothing(api: Api) -> None:
    made = make_key(api, expires_at=2**39)
    client = client_with(api, made["secret"])
    assert client.get("/v1/me").status_code == 200
    with api.database.writing() as session:
        session.get_one(ApiKey, made["id"]).expires_at = database_now() - 1
    assert "expired" in error_of(client.get("/v1/me"), 401)["message"]
    error = error_of(api.client.post("/v1/keys", json={"name": "old", "expires_at": 10}), 400)
    assert error["param"] == "expires_at"


def test_use_of_a_key_is_noted_now_and_then(api: Api) -> None:
    made = make_key(api)
    client = client_with(api, made["secret"])
    client.get("/v1/me")

    def noted() -> float:
        with api.database.reading() as session:
            moment = session.get_one(ApiKey, made["id"]).last_used_at
            assert moment is not None
            return moment

    first = noted()
    client.get("/v1/me")
    assert noted() == first
    with api.database.writing() as session:
        session.get_one(ApiKey, made["id"]).last_used_at = database_now() - LAST_USED_SECONDS - 1
    client.get("/v1/me")
    assert noted() >= first


def test_a_busy_database_does_not_keep_a_key_from_reading(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("database is locked"))

    client = client_with(api, make_key(api)["secret"])
    monkeypatch.setattr(keys, "touch", busy)
    assert client.get("/v1/me").status_code == 200
    assert "database is locked" in caplog.text


_BAD_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": "x" * 65}, "name"),
    ({"name": "x", "scopes": []}, "scopes"),
    ({"name": "x", "scopes": ["root"]}, "scopes.0"),
    ({"name": "x", "expires_at": -1}, "expires_at"),
    ({"name": "x", "typo": 1}, "typo"),
    ({}, "name"),
]


def test_bad_requests_make_no_key(api: Api, subtests: pytest.Subtests) -> None:
    for body, param in _BAD_KEYS:
        with subtests.test(body=body):
            assert error_of(api.client.post("/v1/keys", json=body), 400)["param"] == param
    error_of(api.client.post("/v1/keys", json={"name": "x", "team_id": "org-unknown"}), 404)
    assert len(api.client.get("/v1/keys").json()["data"]) == 1


def test_a_team_its_key_and_its_list(api: Api) -> None:
    team = api.client.post("/v1/teams", json={"name": "blue", "quotas": {"queued_jobs": 3}}).json()
    assert team["quotas"] == {
        "storage_bytes": None,
        "queued_jobs": 3,
        "running_jobs": None,
        "gpu_hours": None,
        "used": {"storage_bytes": 0, "queued_jobs": 0, "running_jobs": 0, "gpu_hours": 0.0},
    }
    conflict = api.client.post("/v1/teams", json={"name": "blue"})
    assert error_of(conflict, 409)["code"] == "team_exists"
    assert conflict.headers["x-should-retry"] == "false"
    made = make_key(api, team_id=team["id"], scopes=["read"])
    me = client_with(api, made["secret"]).get("/v1/me").json()
    assert me["team"] == {"id": team["id"], "name": "blue"}
    assert me["quotas"]["queued_jobs"] == 3
    assert team["id"] in [each["id"] for each in api.client.get("/v1/teams").json()["data"]]
    assert [key["id"] for key in api.client.get("/v1/keys", params={"team_id": team["id"]}).json()["data"]] == [
        made["id"]
    ]
    outsider = client_with(api, made["secret"]).get("/v1/keys", params={"team_id": api.seeded.team_id})
    error_of(outsider, 403)


def test_storage_is_limited(api: Api) -> None:
    set_quotas(api, storage_bytes=len(ROW) * 3)
    used = api.client.get("/v1/me").json()["quotas"]["used"]["storage_bytes"]
    assert used > 0
    before = sorted(api.app.state.files.folder.iterdir())
    error = error_of(api.upload(ROW * 10), 403)
    assert (error["type"], error["code"]) == ("permission_error", "quota_exceeded")
    assert str(len(ROW) * 3) in error["message"]
    assert sorted(api.app.state.files.folder.iterdir()) == before
    upload = {"bytes": 10**6, "filename": "a", "mime_type": "text/plain", "purpose": "fine-tune"}
    assert error_of(api.client.post("/v1/uploads", json=upload), 403)["code"] == "quota_exceeded"


def test_a_body_without_a_length_is_held_to_the_quota_too(api: Api) -> None:
    set_quotas(api, storage_bytes=1000)
    before = sorted(api.app.state.files.folder.iterdir())
    form = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    form += b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + ROW * 100 + b"\r\n--B--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=B"}
    error_of(api.client.post("/v1/files", content=iter([form]), headers=headers), 403)
    assert sorted(api.app.state.files.folder.iterdir()) == before


def test_waiting_jobs_are_limited(api: Api, rings: list[str]) -> None:
    set_quotas(api, queued_jobs=2)
    first = api.create().json()["id"]
    second = api.create().json()["id"]
    response = api.create()
    error = error_of(response, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert rings == [first, second]
    force(api.database, first, JobState.RUNNING, token="t")
    assert api.create().status_code == 200
    force(api.database, second, JobState.PAUSED)
    error_of(api.create(), 429)


def test_gpu_hours_are_limited(api: Api) -> None:
    set_quotas(api, gpu_hours=2)
    job_id = submit_job(api.database, api.seeded)
    with api.database.writing() as session:
        job = session.get_one(Job, job_id)
        job.state, job.gpus, job.started_at = JobState.RUNNING, 2, database_now() - 3000  # 100 minutes of devices
    assert api.create().status_code == 200
    with api.database.writing() as session:
        session.get_one(Job, job_id).gpu_seconds = 1500.0
    assert api.client.get("/v1/me").json()["quotas"]["used"]["gpu_hours"] == pytest.approx(2.08, abs=0.05)
    assert error_of(api.create(), 403)["code"] == "quota_exceeded"
    paused = submit_job(api.database, api.seeded)
    force(api.database, paused, JobState.PAUSED)
    error_of(api.client.post(f"/v1/fine_tuning/jobs/{paused}/resume"), 403)
    with api.database.writing() as session:
        session.get_one(Job, job_id).started_at = database_now() - 31 * 86400
    assert api.create().status_code == 200


def test_quotas_that_are_none_do_not_limit(api: Api) -> None:
    with api.database.reading() as session:
        assert session.get_one(Team, api.seeded.team_id).max_queued_jobs is None
    assert [api.create().status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("quotas", [{"storage_bytes": -1}, {"gpu_hours": -0.5}, {"queued_jobs": 1.5}, {"typo": 1}])
def test_quotas_are_numbers_from_zero_on(api: Api, quotas: dict[str, Any]) -> None:
    response = api.client.post(f"/v1/teams/{api.seeded.team_id}", json={"quotas": quotas})
    assert error_of(response, 400)["param"] == f"quotas.{next(iter(quotas))}"


def test_the_audit_log_says_who_did_what(api: Api) -> None:
    file_id = api.upload().json()["id"]
    created = api.create(training_file=file_id)
    job_id = created.json()["id"]
    api.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    api.client.delete(f"/v1/files/{file_id}")
    key_id = make_key(api)["id"]
    api.client.delete(f"/v1/keys/{key_id}")
    error_of(api.create(model="unknown"), 404)  # what was refused was not done
    entries = api.client.get("/v1/audit").json()["data"]
    assert [(entry["action"], entry["object_id"]) for entry in entries] == [
        ("key.revoke", key_id),
        ("key.create", key_id),
        ("file.delete", file_id),
        ("job.cancel", job_id),
        ("job.create", job_id),
        ("file.create", file_id),
    ]
    assert {(entry["team_id"], entry["key_id"]) for entry in entries} == {(api.seeded.team_id, api.key.split("_")[1])}
    assert entries[4]["request_id"] == created.headers["x-request-id"]
    filtered = api.client.get("/v1/audit", params={"action": "job.cancel", "object_id": job_id}).json()["data"]
    assert [entry["id"] for entry in filtered] == [entries[3]["id"]]
    assert api.client.get("/v1/audit", params={"team_id": "org-none"}).json()["data"] == []
    page = api.client.get("/v1/audit", params={"limit": 4}).json()
    rest = api.client.get("/v1/audit", params={"limit": 4, "after": page["last_id"]}).json()
    assert [entry["id"] for entry in page["data"] + rest["data"]] == [entry["id"] for entry in entries]

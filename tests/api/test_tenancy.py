"""The matrix of every route below /v1, made from the routes themselves: without a key 401, without the scope 403, and
another team's object is 404. A route that no row covers fails the test."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from jenga_core.service.accounts.keys import Scope, create_key
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.models import FineTunedModel, Team
from tests.api.conftest import Api, error_of

Operation = tuple[str, str]

NEEDS_ADMIN = {
    ("POST", "/v1/keys"),
    ("DELETE", "/v1/keys/{key_id}"),
    ("GET", "/v1/teams"),
    ("POST", "/v1/teams"),
    ("POST", "/v1/teams/{team_id}"),
    ("GET", "/v1/audit"),
}
"""They run the installation, so there is no other team for them."""

READS_WITH_POST = {("POST", "/v1/fine_tuning/estimates")}

ADMIN_BODIES: dict[Operation, dict[str, Any]] = {
    ("POST", "/v1/keys"): {"json": {"name": "x"}},
    ("POST", "/v1/teams"): {"json": {"name": "x"}},
    ("POST", "/v1/teams/{team_id}"): {"json": {"quotas": {}}},
}
BODIES: dict[Operation, dict[str, Any]] = {
    ("POST", "/v1/uploads/{upload_id}/complete"): {"json": {"part_ids": ["part_1"]}},
    ("POST", "/v1/uploads/{upload_id}/parts"): {"files": {"data": b"x"}},
}
"""What a request needs to come as far as its object."""


@pytest.fixture
def ids(api: Api) -> dict[str, str]:
    """One object of each kind, of the team of `api`, by the name of its path parameter."""
    job_id = api.create().json()["id"]
    name = f"ft:base:{api.seeded.team_id}:mine:1"
    with api.database.writing() as session:
        owned = {"team_id": api.seeded.team_id, "job_id": job_id, "base_model": api.seeded.model}
        session.add(FineTunedModel(id=name, created_at=1e9, **owned))
    upload = {"bytes": 10, "filename": "a.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    return {
        "file_id": api.seeded.training_file,
        "upload_id": api.client.post("/v1/uploads", json=upload).json()["id"],
        "job_id": job_id,
        "model": name,
        "webhook_id": api.client.post("/v1/webhooks", json={"url": "https://93.184.215.14/"}).json()["id"],
    }


def operations(api: Api) -> list[Operation]:
    """Every method and path below /v1."""
    paths = api.app.openapi()["paths"]
    return [(method.upper(), path) for path, item in paths.items() if path.startswith("/v1/") for method in item]


def client_of(api: Api, team_id: str, *scopes: Scope) -> TestClient:
    """A client with a new key of the team."""
    with api.database.writing() as session:
        team = session.get_one(Team, team_id)
        key = create_key(session, team, "matrix", pepper=api.settings.pepper, scopes=scopes)
    return TestClient(api.app, headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False)


def filled(path: str, ids: dict[str, str]) -> str:
    """The path with these ids, and with `x` for others."""
    return re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], "x"), path)


def test_without_a_key_401(api: Api, subtests: pytest.Subtests) -> None:
    for method, path in operations(api):
        with subtests.test(method=method, path=path):
            error_of(api.anonymous().request(method, filled(path, {})), 401)


def test_without_the_scope_403(api: Api, ids: dict[str, str], subtests: pytest.Subtests) -> None:
    reader = client_of(api, api.seeded.team_id, Scope.READ)
    writer = client_of(api, api.seeded.team_id, Scope.WRITE)
    nobody = client_of(api, api.seeded.team_id)
    for operation in operations(api):
        method, path = operation
        reads = method == "GET" or operation in READS_WITH_POST
        too_weak = [nobody]
        if operation in NEEDS_ADMIN:
            too_weak = [nobody, reader, writer]
        elif not reads:
            too_weak = [nobody, reader]
        for client in too_weak:
            with subtests.test(method=method, path=path, client=too_weak.index(client)):
                body = ADMIN_BODIES.get(operation, {})
                error = error_of(client.request(method, filled(path, ids), **body), 403)
                assert (error["type"], error["code"]) == ("permission_error", "insufficient_permissions")


def test_another_teams_object_is_404(api: Api, ids: dict[str, str], subtests: pytest.Subtests) -> None:
    with api.database.writing() as session:
        strangers = create_team(session, "strangers").id
    stranger = client_of(api, strangers, Scope.WRITE)
    covered = set(NEEDS_ADMIN)
    for operation in operations(api):
        method, path = operation
        name = re.search(r"\{(\w+)\}", path)
        if operation in NEEDS_ADMIN or name is None:
            continue
        covered.add(operation)
        with subtests.test(method=method, path=path):
            assert name[1] in ids, f"make an object for {{{name[1]}}} in the fixture"
            response = stranger.request(method, filled(path, ids), **BODIES.get(operation, {}))
            unknown = stranger.request(method, filled(path, {}), **BODIES.get(operation, {}))
            theirs, nobodys = error_of(response, 404), error_of(unknown, 404)
            assert theirs["code"] == nobodys["code"]
            shown = ids[name[1]]
            assert theirs["message"].replace(shown, "x") == nobodys["message"]
    without_object = {each for each in operations(api) if "{" not in each[1]}
    assert covered | without_object == set(operations(api))
    assert len(covered) >= 25


def test_lists_hold_nothing_of_other_teams(api: Api, ids: dict[str, str], subtests: pytest.Subtests) -> None:
    with api.database.writing() as session:
        strangers = create_team(session, "strangers").id
    stranger = client_of(api, strangers, Scope.READ)
    theirs = {api.seeded.team_id, *ids.values()}
    for method, path in operations(api):
        if method == "GET" and "{" not in path and (method, path) not in NEEDS_ADMIN:
            with subtests.test(path=path):
                response = stranger.get(path)
                assert response.status_code == 200
                assert not [each for each in theirs if each in response.text]


def test_a_job_cannot_be_made_of_another_teams_file(api: Api, ids: dict[str, str]) -> None:
    with api.database.writing() as session:
        strangers = create_team(session, "strangers").id
    stranger = client_of(api, strangers, Scope.WRITE)
    for path in ("/v1/fine_tuning/jobs", "/v1/fine_tuning/estimates"):
        assert error_of(stranger.post(path, json=api.body()), 404)["param"] == "training_file"
    assert api.client.get(f"/v1/fine_tuning/jobs/{ids['job_id']}").json()["status"] == "queued"

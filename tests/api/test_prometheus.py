"""/metrics: the numbers of the installation, for its administrators."""

from __future__ import annotations

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from jenga_core.service.accounts.keys import Scope, create_key
from jenga_core.service.db.models import Team
from jenga_core.service.jobs.state import JobState
from tests.api.conftest import Api, error_of
from tests.support.jobs import force, submit_job


def scrape(api: Api) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = api.client.get("/metrics")
    assert response.status_code == 200, response.text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_jobs_files_and_requests_are_counted(api: Api) -> None:
    jobs = [submit_job(api.database, api.seeded) for _ in range(3)]
    force(api.database, jobs[0], JobState.RUNNING, token="t")
    api.client.get(f"/v1/fine_tuning/jobs/{jobs[0]}")
    api.client.get("/v1/fine_tuning/jobs/unknown")
    found = scrape(api)
    assert found["jenga_jobs", (("state", "queued"),)] == 2
    assert found["jenga_jobs", (("state", "running"),)] == 1
    assert found["jenga_jobs", (("state", "failed"),)] == 0
    assert found["jenga_stored_bytes", ()] > 0
    assert found["jenga_oldest_queued_job_seconds", ()] >= 0
    assert found["jenga_workers_online", ()] == 0
    route = ("route", "/v1/fine_tuning/jobs/{job_id}")
    for status in ("200", "404"):
        assert found["jenga_http_request_seconds_count", (("method", "GET"), route, ("status", status))] == 1


def test_addresses_that_strangers_invent_make_no_series(api: Api) -> None:
    for number in range(5):
        api.anonymous().request(f"X{number}", f"/nothing/{number}")
    series = [labels for name, labels in scrape(api) if name == "jenga_http_request_seconds_count"]
    assert all(dict(labels)["route"] == "none" and dict(labels)["method"] == "any" for labels in series)


def test_methods_that_strangers_invent_make_no_series(api: Api) -> None:
    api.client.request("BREW", "/healthz")
    methods = {value for _, labels in scrape(api) for name, value in labels if name == "method"}
    assert "BREW" not in methods


def test_the_numbers_are_for_administrators(api: Api) -> None:
    error_of(api.anonymous().get("/metrics"), 401)
    with api.database.writing() as session:
        team = session.get_one(Team, api.seeded.team_id)
        key = create_key(session, team, "w", pepper=api.settings.pepper, scopes=[Scope.WRITE])
    client = TestClient(api.app, headers={"Authorization": f"Bearer {key}"})
    assert error_of(client.get("/metrics"), 403)["code"] == "insufficient_permissions"

"""A page that polls gets 304 until something has changed."""

from __future__ import annotations

import pytest

from tests.api.conftest import Api
from tests.support.jobs import submit_job


def test_everything_a_page_polls_can_be_revalidated(api: Api, subtests: pytest.Subtests) -> None:
    job_id = submit_job(api.database, api.seeded)
    jobs = "/v1/fine_tuning/jobs"
    below = ("", "/events", "/checkpoints", "/metrics", "/memory", "/selection")
    others = ("/v1/files", "/v1/models", "/v1/predictors", "/v1/fleet", "/v1/keys", "/v1/me", "/v1/webhooks")
    for path in (jobs, *(f"{jobs}/{job_id}{part}" for part in below), *others):
        with subtests.test(path=path):
            first = api.client.get(path)
            tag = first.headers["etag"]
            assert first.headers["cache-control"] == "private, no-cache"
            again = api.client.get(path, headers={"If-None-Match": f'"other", W/{tag}'})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert again.headers["x-request-id"] != first.headers["x-request-id"]
            assert api.client.get(path, headers={"If-None-Match": '"other"'}).json() == first.json()


def test_a_change_changes_the_tag(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    path = f"/v1/fine_tuning/jobs/{job_id}"
    tag = api.client.get(path).headers["etag"]
    api.client.post(f"{path}/cancel")
    changed = api.client.get(path, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["status"]) == (200, "cancelled")


def test_errors_changes_and_downloads_have_no_tag_of_ours(api: Api) -> None:
    content = api.client.get(f"/v1/files/{api.seeded.training_file}/content")
    assert content.headers.get("cache-control") is None
    assert "etag" not in api.client.get("/v1/files/file-unknown").headers
    assert "etag" not in api.create().headers


def test_a_tag_does_not_open_what_the_key_does_not(api: Api) -> None:
    tag = api.client.get("/v1/models").headers["etag"]
    assert api.anonymous().get("/v1/models", headers={"If-None-Match": tag}).status_code == 401

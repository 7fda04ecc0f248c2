"""A request that is sent again finds its job; one that is meant makes another."""

from __future__ import annotations

from typing import Any

import pytest

from jenga_core.service.accounts.idempotency import RETRY_SECONDS
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import JobRequest
from tests.api.conftest import Api, error_of, key_of


def create(api: Api, headers: dict[str, str], **fields: Any) -> Any:
    return api.client.post("/v1/fine_tuning/jobs", json=api.body(**fields), headers=headers)


def test_the_same_key_makes_one_job(api: Api, rings: list[str]) -> None:
    first = create(api, {"Idempotency-Key": "a"}).json()
    assert create(api, {"Idempotency-Key": "a"}).json()["id"] == first["id"]
    assert (api.jobs(), rings) == (1, [first["id"]])
    assert create(api, {"Idempotency-Key": "b"}).json()["id"] != first["id"]


def test_the_same_key_with_another_body_is_a_conflict(api: Api) -> None:
    first = create(api, {"Idempotency-Key": "a"}).json()
    response = create(api, {"Idempotency-Key": "a"}, suffix="other")
    error = error_of(response, 409)
    assert (error["type"], error["code"]) == ("conflict_error", "idempotency_conflict")
    assert first["id"] in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert api.jobs() == 1


def test_defaults_that_are_spelled_out_are_the_same_body(api: Api) -> None:
    first = create(api, {"Idempotency-Key": "a"}).json()
    assert create(api, {"Idempotency-Key": "a"}, suffix=None, validation_file=None).json()["id"] == first["id"]


def test_keys_of_two_api_keys_have_nothing_to_do_with_each_other(api: Api) -> None:
    first = create(api, {"Idempotency-Key": "a"}).json()
    other = {"Authorization": f"Bearer {key_of(api.database, api.settings, api.seeded.team_id)}"}
    assert create(api, {"Idempotency-Key": "a", **other}).json()["id"] != first["id"]


@pytest.mark.parametrize("count", ["1", "2"])
def test_what_the_client_repeats_finds_its_job(api: Api, rings: list[str], count: str) -> None:
    first = create(api, {"x-stainless-retry-count": "0"}).json()
    assert create(api, {"x-stainless-retry-count": count}).json()["id"] == first["id"]
    assert rings == [first["id"]]
    assert create(api, {"x-stainless-retry-count": count}, suffix="other").json()["id"] != first["id"]


@pytest.mark.parametrize("headers", [{}, {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "many"}])
def test_what_is_no_repetition_makes_another_job(api: Api, headers: dict[str, str]) -> None:
    assert create(api, headers).json()["id"] != create(api, headers).json()["id"]
    assert api.jobs() == 2


def test_a_late_repetition_is_a_new_request(api: Api) -> None:
    first = create(api, {}).json()
    with api.database.writing() as session:
        session.get_one(JobRequest, first["id"]).created_at = database_now() - RETRY_SECONDS - 1
    assert create(api, {"x-stainless-retry-count": "1"}).json()["id"] != first["id"]


def test_a_repetition_is_answered_even_where_the_queue_is_full(api: Api) -> None:
    api.client.post(f"/v1/teams/{api.seeded.team_id}", json={"quotas": {"queued_jobs": 1}})
    first = create(api, {"Idempotency-Key": "a"}).json()
    error_of(create(api, {"Idempotency-Key": "b"}), 429)
    assert create(api, {"Idempotency-Key": "a"}).json()["id"] == first["id"]


def test_a_refused_request_can_be_mended_under_the_same_key(api: Api) -> None:
    error_of(create(api, {"Idempotency-Key": "a"}, model="unknown"), 404)
    assert create(api, {"Idempotency-Key": "a"}).status_code == 200

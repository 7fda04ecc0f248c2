"""Pausing, resuming and stopping over the API: what the lifecycle allows, and its refusals as they are."""

from __future__ import annotations

from typing import Any

import pytest

from jenga_core.service.db.models import Job
from jenga_core.service.jobs.state import JobStage, JobState
from tests.api.conftest import Api, error_of
from tests.support.jobs import force, submit_job


def ask(api: Api, job_id: str, what: str) -> Any:
    return api.client.post(f"/v1/fine_tuning/jobs/{job_id}/{what}")


def test_pause_and_resume_a_waiting_job(api: Api, rings: list[str]) -> None:
    job_id = submit_job(api.database, api.seeded)
    paused = ask(api, job_id, "pause").json()
    assert (paused["status"], paused["jenga"]["state"]) == ("queued", "paused")
    assert ask(api, job_id, "pause").json() == paused
    resumed = ask(api, job_id, "resume").json()
    assert (resumed["status"], resumed["jenga"]["state"]) == ("queued", "queued")
    assert rings == [job_id, job_id]


def test_pause_and_stop_a_running_job(api: Api) -> None:
    for what, state in (("pause", "pausing"), ("stop", "running")):
        job_id = submit_job(api.database, api.seeded)
        force(api.database, job_id, JobState.RUNNING, token="t")
        with api.database.writing() as session:
            job = session.get_one(Job, job_id)
            job.stage, job.step = JobStage.FINETUNE, 3
        response = ask(api, job_id, what)
        assert response.status_code == 200, response.text
        assert response.json()["jenga"]["state"] == state


@pytest.mark.parametrize("what", ["pause", "stop"])
def test_a_refusal_names_the_stage_and_is_final(api: Api, what: str) -> None:
    job_id = submit_job(api.database, api.seeded)
    force(api.database, job_id, JobState.RUNNING, token="t")
    with api.database.writing() as session:
        job = session.get_one(Job, job_id)
        job.stage, job.step = JobStage.PUBLISH, 3
    response = ask(api, job_id, what)
    error = error_of(response, 409)
    assert error["type"] == "conflict_error"
    assert "publish" in error["message"]
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("what", ["pause", "resume", "stop", "cancel"])
def test_a_job_that_ended_is_left_alone(api: Api, what: str) -> None:
    job_id = submit_job(api.database, api.seeded)
    force(api.database, job_id, JobState.FAILED)
    assert error_of(ask(api, job_id, what), 409)["code"] == "job_state_conflict"
    assert api.client.get("/v1/audit", params={"object_id": job_id}).json()["data"] == []


def test_a_job_tells_how_long_it_ran_and_that_it_was_stopped(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    with api.database.writing() as session:
        job = session.get_one(Job, job_id)
        job.gpus, job.gpu_seconds, job.created_at, job.started_at = 2, 200.0, 1000.0, 2000.5
        job.state, job.step, job.stop_asked_at = JobState.SUCCEEDED, 2, 2100.5
    jenga = api.client.get(f"/v1/fine_tuning/jobs/{job_id}").json()["jenga"]
    assert (jenga["started_at"], jenga["ran_seconds"], jenga["stop_asked_at"]) == (2000, 100.0, 2100)


def test_scheduling_is_part_of_the_jenga_object(api: Api) -> None:
    fields = {"context_length_tokens": 128, "priority": 1, "gpus": 2, "oom_policy": "shrink"}
    jenga = api.create(jenga=fields).json()["jenga"]
    assert (jenga["priority"], jenga["gpus"], jenga["oom_policy"], jenga["owner"]) == (1, 2, "shrink", "test")
    assert jenga["config"]["context_length_tokens"] == 128
    assert "priority" not in jenga["config"]


@pytest.mark.parametrize(("name", "value"), [("priority", 2), ("gpus", 0), ("oom_policy", "pray"), ("gpus", "many")])
def test_scheduling_that_cannot_be_is_named(api: Api, name: str, value: Any) -> None:
    error = error_of(api.create(jenga={name: value}), 400)
    assert (error["code"], error["param"]) == ("invalid_config", f"jenga.{name}")
    assert api.jobs() == 0

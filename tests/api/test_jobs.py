"""Jobs as they are read: status words, cancelling, events, and lists that end."""

from __future__ import annotations

from typing import Any

import pytest

from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import (
    FineTunedModel,
    Job,
    JobCheckpoint,
    JobMemory,
    JobMetric,
    JobSelection,
)
from jenga_core.service.jobs.state import JobStage, JobState
from tests.api.conftest import Api, error_of
from tests.support.jobs import force, submit_job


def _walk(api: Api, path: str, limit: int, **params: Any) -> list[str]:
    """Every id of a list, page by page, as the openai client does it; at most 50 pages."""
    ids: list[str] = []
    for _ in range(50):
        page = api.client.get(path, params={**params, "limit": limit, **({"after": ids[-1]} if ids else {})}).json()
        ids += [item["id"] for item in page["data"]]
        assert page["first_id"] == (page["data"][0]["id"] if page["data"] else None)
        if not page["has_more"]:
            return ids
        assert len(page["data"]) == limit
        assert page["last_id"] == ids[-1]
    raise AssertionError(f"{path} never ends")


_STATUSES = [
    (JobState.QUEUED, JobStage.VALIDATE, "queued"),
    (JobState.PAUSING, JobStage.FINETUNE, "queued"),
    (JobState.PAUSED, JobStage.FINETUNE, "queued"),
    (JobState.RUNNING, JobStage.VALIDATE, "validating_files"),
    (JobState.RUNNING, JobStage.FINETUNE, "running"),
    (JobState.CANCELLING, JobStage.VALIDATE, "running"),
    (JobState.SUCCEEDED, JobStage.PUBLISH, "succeeded"),
    (JobState.FAILED, JobStage.FINETUNE, "failed"),
    (JobState.CANCELLED, JobStage.VALIDATE, "cancelled"),
]


def test_status(api: Api, subtests: pytest.Subtests) -> None:
    for state, stage, status in _STATUSES:
        with subtests.test(state=state, stage=stage):
            job_id = submit_job(api.database, api.seeded)
            with api.database.writing() as session:
                job = session.get_one(Job, job_id)
                job.state, job.stage = state, stage
                job.error = {"code": "oom", "message": "too big", "param": None}
            answer = api.client.get(f"/v1/fine_tuning/jobs/{job_id}").json()
            assert answer["status"] == status
            assert (answer["jenga"]["state"], answer["jenga"]["stage"]) == (state, stage)
            assert (answer["error"] is not None) == (status == "failed")


def test_estimated_finish_only_while_running(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    with api.database.writing() as session:
        job = session.get_one(Job, job_id)
        job.state, job.started_at, job.step, job.total_steps = JobState.RUNNING, database_now() - 100, 910, 1000
        for step, seconds_ago in ((900, 5000), (901, 90), (910, 0)):  # before the pause, and since
            at = database_now() - seconds_ago
            session.add(JobMetric(job_id=job_id, step=step, train_loss=2.0, created_at=at))
    running = api.client.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert running["estimated_finish"] - running["created_at"] == pytest.approx(900, abs=30)
    force(api.database, job_id, JobState.SUCCEEDED)
    assert api.client.get(f"/v1/fine_tuning/jobs/{job_id}").json()["estimated_finish"] is None


def test_cancel_a_waiting_job(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    path = f"/v1/fine_tuning/jobs/{job_id}"
    cancelled = api.client.post(f"{path}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert isinstance(cancelled["finished_at"], int)
    assert api.client.get(path).json() == cancelled
    assert api.client.post(f"{path}/cancel").json() == cancelled
    newest = api.client.get(f"{path}/events").json()["data"][0]
    assert (newest["level"], newest["message"]) == ("warn", "The job was cancelled before it ran")


def test_cancel_a_running_job(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    force(api.database, job_id, JobState.RUNNING, token="t")
    answer = api.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").json()
    assert (answer["status"], answer["jenga"]["state"]) == ("running", "cancelling")


def test_a_job_that_ended_cannot_be_cancelled(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    force(api.database, job_id, JobState.SUCCEEDED)
    response = api.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    error = error_of(response, 409)
    assert (error["type"], error["code"]) == ("conflict_error", "job_state_conflict")
    assert response.headers["x-should-retry"] == "false"


def test_job_lists_end_and_hold_every_job_once(api: Api, subtests: pytest.Subtests) -> None:
    same_moment = [submit_job(api.database, api.seeded, created_at=1e9) for _ in range(4)]
    later = [submit_job(api.database, api.seeded, created_at=2e9 + n) for n in range(3)]
    for limit in (1, 2, 3, 7, 100):
        with subtests.test(limit=limit):
            assert _walk(api, "/v1/fine_tuning/jobs", limit) == [*reversed(later), *sorted(same_moment, reverse=True)]


def test_metadata_filters(api: Api) -> None:
    made = [
        submit_job(api.database, api.seeded, tags=tags, created_at=float(n))
        for n, tags in enumerate([None, {'odd "key".[': "a b"}, {'odd "key".[': "a b", "x": "1"}, {"x": "2"}, {}, None])
    ]
    path = "/v1/fine_tuning/jobs"
    assert _walk(api, path, 1, **{'metadata[odd "key".[]': "a b"}) == [made[2], made[1]]
    assert _walk(api, path, 1, **{'metadata[odd "key".[]': "a b", "metadata[x]": "1"}) == [made[2]]
    assert _walk(api, path, 2, metadata="null") == [made[5], made[4], made[0]]
    assert error_of(api.client.get(path, params={"metadata": "x"}), 400)["param"] == "metadata"


def test_events_come_newest_first_and_end(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    for _ in range(2):
        api.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    path = f"/v1/fine_tuning/jobs/{job_id}/events"
    assert len(_walk(api, path, 1)) == 2
    assert _walk(api, path, 1) == _walk(api, path, 10)
    oldest = api.client.get(path).json()["data"][-1]
    assert oldest == {
        "id": oldest["id"],
        "object": "fine_tuning.job.event",
        "created_at": oldest["created_at"],
        "level": "info",
        "message": f"Created fine-tuning job: {job_id}",
        "type": "message",
        "data": None,
    }


def test_an_unknown_cursor_is_an_error_and_not_page_one(api: Api, subtests: pytest.Subtests) -> None:
    job_id = submit_job(api.database, api.seeded)
    jobs, event = "/v1/fine_tuning/jobs", f"ftevent-{job_id.removeprefix('ftjob-')}-"
    for path in (jobs, "/v1/files", f"{jobs}/{job_id}/events", f"{jobs}/{job_id}/checkpoints"):
        for after in ("unknown", "ftjob-1", f"{event}0", f"{event}99", event + "9" * 99):
            with subtests.test(path=path, after=after):
                error = error_of(api.client.get(path, params={"after": after}), 400)
                assert (error["code"], error["param"]) == ("invalid_cursor", "after")


def test_checkpoints(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    with api.database.writing() as session:
        for step in (4, 8, 12):
            session.add(
                JobCheckpoint(
                    id=f"ftckpt_{job_id[-4:]}{step}",
                    job_id=job_id,
                    step=step,
                    folder=f"step-{step}",
                    metrics={"train_loss": 1.5},
                    created_at=1e9 + step,
                )
            )
    path = f"/v1/fine_tuning/jobs/{job_id}/checkpoints"
    assert [item["step_number"] for item in api.client.get(path).json()["data"]] == [12, 8, 4]
    assert len(_walk(api, path, 2)) == 3
    assert api.client.get(path).json()["data"][0] == {
        "id": f"ftckpt_{job_id[-4:]}12",
        "object": "fine_tuning.job.checkpoint",
        "created_at": 10**9 + 12,
        "fine_tuned_model_checkpoint": f"{job_id}:ckpt-step-12",
        "fine_tuning_job_id": job_id,
        "step_number": 12,
        "metrics": {"step": 12, "train_loss": 1.5},
    }


def test_what_a_job_measured(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    spans = [{"first_layer": 1, "last_layer": 1, "blocks": [0, 3]}]
    with api.database.writing() as session:
        for step in range(3):
            session.add(JobMetric(job_id=job_id, step=step, train_loss=3.0 - step, created_at=1e9))
        session.add(
            JobMemory(
                job_id=job_id,
                phase="finetune",
                states_bytes=2**40,
                activation_bytes=2,
                predictor_bytes=3,
                other_bytes=4,
                peak_bytes=2**40 + 9,
                device="cpu",
                created_at=1e9,
            )
        )
        session.add(
            JobSelection(
                job_id=job_id,
                step=1,
                num_blocks=4,
                kept_fraction={"layers": [1.0, 0.5]},
                kept_blocks={"entry_layer": 1, "spans": spans},
                created_at=1e9,
            )
        )
    path = f"/v1/fine_tuning/jobs/{job_id}"
    metrics = api.client.get(f"{path}/metrics").json()
    assert (metrics["object"], metrics["has_more"]) == ("list", False)
    assert [(row["step"], row["train_loss"], row["valid_loss"]) for row in metrics["data"]] == [
        (0, 3.0, None),
        (1, 2.0, None),
        (2, 1.0, None),
    ]
    later = api.client.get(f"{path}/metrics", params={"after_step": 0, "limit": 1}).json()
    assert [row["step"] for row in later["data"]] == [1]
    assert later["has_more"]
    (memory,) = api.client.get(f"{path}/memory").json()["data"]
    assert (memory["phase"], memory["states_bytes"], memory["device"]) == ("finetune", 2**40, "cpu")
    (selection,) = api.client.get(f"{path}/selection").json()["data"]
    assert selection == {
        "step": 1,
        "entry_layer": 1,
        "num_blocks": 4,
        "kept_fraction": [1.0, 0.5],
        "spans": spans,
        "created_at": 1e9,
    }


def test_models(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    name = f"ft:org/base:{api.seeded.team_id}:suffix:1"
    with api.database.writing() as session:
        session.add(
            FineTunedModel(
                id=name, team_id=api.seeded.team_id, job_id=job_id, base_model=api.seeded.model, created_at=1e9
            )
        )
    listed = api.client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [api.seeded.model, name]
    assert api.client.get(f"/v1/models/{name.replace('/', '%2F')}").json() == {
        "id": name,
        "object": "model",
        "created": 10**9,
        "owned_by": api.seeded.team_id,
    }
    assert api.client.get(f"/v1/models/{api.seeded.model}").json()["owned_by"] == "jenga"
    with api.database.writing() as session:
        session.get_one(FineTunedModel, name).team_id = create_team(session, "others").id
    assert error_of(api.client.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"

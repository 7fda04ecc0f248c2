"""What a job measured, whole and thinned out; and what of it is shown beside the job."""

from __future__ import annotations

from itertools import pairwise

import pytest

from jenga_core.service.db.models import Job, JobMemory, JobMetric, JobSelection
from jenga_core.service.jobs.state import JobState
from tests.api.conftest import Api, error_of
from tests.support.jobs import force, submit_job


def measured(api: Api, steps: int) -> str:
    """A job with one metric row a step, from 0 to `steps`."""
    job_id = submit_job(api.database, api.seeded)
    with api.database.writing() as session:
        for step in range(steps + 1):
            loss = None if step == 0 else 3.0 - step / 1000
            valid = 2.9 if step == 0 else None
            session.add(JobMetric(job_id=job_id, step=step, train_loss=loss, valid_loss=valid, created_at=1e9 + step))
        session.get_one(Job, job_id).step = steps
    return job_id


@pytest.mark.parametrize("max_points", [2, 3, 10, 99, 100])
def test_a_thinned_series_has_its_ends_and_is_evenly_spread(api: Api, max_points: int) -> None:
    path = f"/v1/fine_tuning/jobs/{measured(api, 999)}/metrics"
    page = api.client.get(path, params={"max_points": max_points}).json()
    steps = [row["step"] for row in page["data"]]
    assert (steps[0], steps[-1], page["has_more"]) == (0, 999, False)
    assert max_points // 2 < len(steps) <= max_points
    gaps = {later - earlier for earlier, later in pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert page["data"][-1]["train_loss"] == 3.0 - 999 / 1000


def test_a_short_series_is_whole(api: Api) -> None:
    path = f"/v1/fine_tuning/jobs/{measured(api, 20)}/metrics"
    assert len(api.client.get(path, params={"max_points": 21}).json()["data"]) == 21
    later = api.client.get(path, params={"max_points": 3, "after_step": 10}).json()["data"]
    assert [later[0]["step"], later[-1]["step"], len(later)] == [11, 20, 3]
    assert error_of(api.client.get(path, params={"max_points": 1}), 400)["param"] == "max_points"


def test_selections_are_thinned_too(api: Api) -> None:
    job_id = submit_job(api.database, api.seeded)
    with api.database.writing() as session:
        for step in range(50):
            kept = {"kept_fraction": {"layers": [1.0]}, "kept_blocks": {"spans": []}}
            session.add(JobSelection(job_id=job_id, step=step, num_blocks=4, created_at=1e9, **kept))
    rows = api.client.get(f"/v1/fine_tuning/jobs/{job_id}/selection", params={"max_points": 5}).json()["data"]
    assert (rows[0]["step"], rows[-1]["step"], len(rows)) == (0, 49, 5)
    assert rows[0]["entry_layer"] is None  # written before it was recorded


def test_a_job_shows_its_newest_loss_and_its_memory(api: Api) -> None:
    job_id = measured(api, 8)
    columns = {"states_bytes": 1, "predictor_bytes": 0, "other_bytes": 0, "device": "cpu", "created_at": 1e9}
    with api.database.writing() as session:
        for phase, activations, peak in (("finetune", 40, 100), ("dense_reference", 90, 150)):
            session.add(JobMemory(job_id=job_id, phase=phase, activation_bytes=activations, peak_bytes=peak, **columns))
    other = submit_job(api.database, api.seeded)
    shown = {job["id"]: job["jenga"] for job in api.client.get("/v1/fine_tuning/jobs").json()["data"]}
    assert shown[job_id]["loss"] == {"train": 3.0 - 8 / 1000, "held_out": 2.9}
    assert shown[job_id]["memory"] == {"peak_bytes": 100, "activation_bytes": 40, "dense_activation_bytes": 90}
    assert (shown[other]["loss"], shown[other]["memory"]) == (None, None)
    with api.database.writing() as session:
        row = session.get_one(JobMetric, (job_id, 8))
        row.valid_loss = 2.5
    assert api.client.get(f"/v1/fine_tuning/jobs/{job_id}").json()["jenga"]["loss"]["held_out"] == 2.5


def test_a_place_in_the_queue_only_while_queued(api: Api) -> None:
    first, second = (submit_job(api.database, api.seeded, created_at=1e9 + n) for n in range(2))
    path = "/v1/fine_tuning/jobs/"
    queue = api.client.get(path + second).json()["jenga"]["queue"]
    assert queue["position"] == 2
    assert queue["reason"]
    force(api.database, first, JobState.RUNNING, token="t")
    assert api.client.get(path + first).json()["jenga"]["queue"] is None
    assert api.client.get(path + second).json()["jenga"]["queue"]["position"] == 1

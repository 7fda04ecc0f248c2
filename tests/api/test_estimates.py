"""A dry run says what a job would be, finds what is wrong with it, and writes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jenga_core.config import JengaConfig
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Device, JobMetric, Worker
from jenga_core.service.jobs.state import JobState
from tests.api.conftest import ROW, SMALL, Api, error_of
from tests.support.jobs import new_job
from tests.support.tiny import tiny_tokenizer

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


@pytest.fixture
def api(api: Api) -> Api:
    """Whose model has a tokenizer and a shape."""
    folder = api.settings.folder("models", api.seeded.model)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return api


def estimate(api: Api, **fields: Any) -> dict[str, Any]:
    response = api.client.post("/v1/fine_tuning/estimates", json=api.body(**fields))
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def add_gpu(api: Api, memory_bytes: int) -> None:
    with api.database.writing() as session:
        now = database_now()
        session.add(Worker(id="worker-1", host="gpu-1", pid=1, versions={}, started_at=now, heartbeat_at=now))
        session.flush()
        about = {"kind": "cuda", "name": "L4", "memory_used_bytes": 0, "foreign_processes": []}
        session.add(Device(uuid="GPU-1", worker_id="worker-1", memory_bytes=memory_bytes, **about))


def test_rows_tokens_steps_and_memory(api: Api, rings: list[str]) -> None:
    file_id = api.upload(ROW * 9 + b'{"prompt": "' + b"p" * 100 + b'", "completion": "' + b"c" * 100 + b'"}\n').json()[
        "id"
    ]
    told = estimate(api, training_file=file_id, jenga={"context_length_tokens": 128})
    text = len("a document") + 1
    assert (told["valid"], told["errors"], told["rows"], told["rows_counted"]) == (True, [], 10, 10)
    assert (told["tokens"], told["tokens_cut"], told["sequences"]) == (9 * text + 128, 201 - 128, 10)
    assert told["length_histogram"] == [
        {"from_tokens": 9, "to_tokens": 16, "rows": 9},
        {"from_tokens": 129, "to_tokens": 256, "rows": 1},
    ]
    assert told["steps"] == 30  # three epochs
    assert (told["seconds"], told["devices"], told["advice"]) == (None, [], None)
    asked = told["memory"][0]
    assert asked["setting"] == "as asked"
    assert 0 < asked["low_bytes"] < asked["expected_bytes"] < asked["high_bytes"]
    assert sum(asked["by_kind"].values()) == asked["expected_bytes"]
    assert "dense LoRA" in [each["setting"] for each in told["memory"]]
    assert (api.jobs(), rings) == (0, [])
    assert api.client.get("/v1/audit", params={"action": "job.create"}).json()["data"] == []


def test_wrong_rows_make_it_invalid(api: Api) -> None:
    file_id = api.upload(ROW + b'{"text": ""}\n' + ROW + b"{}\n").json()["id"]
    told = estimate(api, training_file=file_id)
    assert not told["valid"]
    assert [error["row"] for error in told["errors"]] == [2, 4]
    assert (told["rows"], told["rows_counted"]) == (4, 2)


def test_a_validation_file_that_cannot_be_used_makes_it_invalid(api: Api) -> None:
    told = estimate(api, validation_file=api.upload(b"{}\n").json()["id"])
    assert not told["valid"]
    assert "Row 1" in told["errors"][0]["message"]


def test_the_fleet_says_what_fits(api: Api) -> None:
    add_gpu(api, 2**36)
    told = estimate(api)
    (device,) = told["devices"]
    assert (device["name"], device["fits"], told["advice"]) == ("L4", True, None)
    assert device["longest_context_tokens"] > 256


def test_a_fleet_too_small_comes_with_advice(api: Api) -> None:
    add_gpu(api, 2**20)
    told = estimate(api)
    assert not told["devices"][0]["fits"]
    assert told["advice"]


def test_time_comes_from_earlier_jobs_that_resemble_it(api: Api) -> None:
    assert estimate(api)["seconds"] is None
    with api.database.writing() as session:
        for speed, preset, interrupted in ((100.0, "jenga", False), (1.0, "lora", False), (100.0, "jenga", True)):
            config = JengaConfig.preset(preset, context_length_tokens=128).model_dump(mode="json")
            times = {"started_at": 1000.0, "finished_at": 1040.0}  # 8 s of it training
            job = new_job(api.seeded, state=JobState.SUCCEEDED, stage="publish", config=config, **times)
            session.add(job)
            session.flush()
            for step in range(1, 4):
                at = 1000.0 + 4 * step - (500.0 if interrupted and step == 1 else 0.0)
                session.add(JobMetric(job_id=job.id, step=step, tokens_per_second=speed, created_at=at))
    told = estimate(api)
    tokens = told["steps"] * told["tokens"] / told["sequences"]
    assert told["seconds"]["expected"] == pytest.approx(32 + tokens / 100)
    assert estimate(api, jenga={**SMALL, "preset": "lora"})["seconds"]["expected"] == pytest.approx(32 + tokens)
    assert estimate(api, jenga={**SMALL, "preset": "jenga-paper"})["seconds"] is None
    assert estimate(api, jenga={**SMALL, "recompute": "full"})["seconds"] is None
    assert estimate(api, jenga={**SMALL, "context_length_tokens": 32})["seconds"] is None


def test_what_a_job_would_be_refused_for_is_refused_here(api: Api) -> None:
    def refused(status: int, **fields: Any) -> str | None:
        response = api.client.post("/v1/fine_tuning/estimates", json=api.body(**fields))
        param: str | None = error_of(response, status)["param"]
        return param

    assert refused(404, model="unknown") == "model"
    assert refused(404, training_file="file-unknown") == "training_file"
    assert refused(400, jenga={"context_length_tokens": 300}) == "jenga.context_length_tokens"
    assert refused(400, suffix="x" * 65) == "suffix"

"""The official `openai` client drives the service with only base_url and api_key changed."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import FineTunedModel, Job, JobCheckpoint, StoredFile
from jenga_core.service.files.store import FileStore
from jenga_core.service.ids import new_id
from jenga_core.service.jobs import events
from jenga_core.service.jobs.state import JobState
from tests.contract.conftest import Service
from tests.support.jobs import submit_job

ROWS = b'{"prompt": "2 + 2 =", "completion": " 4"}\n' * 50
JENGA = {"jenga": {"context_length_tokens": 128, "max_steps": 3, "keep_fraction": 0.5}}


def test_upload_create_watch_cancel(service: Service, client: openai.OpenAI) -> None:
    uploaded = client.files.create(file=io.BytesIO(ROWS), purpose="fine-tune")
    assert client.files.wait_for_processing(uploaded.id).status == "processed"
    assert uploaded.bytes == len(ROWS)
    assert client.files.content(uploaded.id).read() == ROWS
    assert [file.id for file in client.files.list()] == [uploaded.id, service.seeded.training_file]

    job = client.fine_tuning.jobs.create(
        model=service.seeded.model,
        training_file=uploaded.id,
        suffix="mine",
        seed=3,
        metadata={"team": "blue"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 2}}},
        extra_body=JENGA,
    )
    assert job.status == "queued"
    assert job.hyperparameters.batch_size == 2
    assert job.model_extra is not None
    assert job.model_extra["jenga"]["config"]["selection"]["keep_fraction"] == 0.5
    assert job._request_id is not None
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "blue"})] == [job.id]
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "red"})] == []

    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert messages == ["The job was cancelled before it ran", f"Created fine-tuning job: {job.id}"]
    assert client.files.delete(uploaded.id).deleted


def test_an_upload_from_disk_keeps_its_name(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "my data.jsonl"
    path.write_bytes(ROWS)
    with path.open("rb") as file:
        assert client.files.create(file=file, purpose="fine-tune").filename == "my data.jsonl"


def test_lists_over_three_pages_hold_every_id_once(service: Service, client: openai.OpenAI) -> None:
    jobs = [submit_job(service.database, service.seeded, created_at=1e9 + n // 2) for n in range(6)]
    with service.database.writing() as session:
        for number in range(5):
            events.append(session, jobs[0], f"event {number}")
    listed = [job.id for _, job in zip(range(100), client.fine_tuning.jobs.list(limit=2), strict=False)]
    assert sorted(listed) == sorted(jobs)
    assert listed[0] in jobs[4:]
    told = [
        event.message
        for _, event in zip(range(100), client.fine_tuning.jobs.list_events(jobs[0], limit=2), strict=False)
    ]
    assert told == [*(f"event {number}" for number in (4, 3, 2, 1, 0)), f"Created fine-tuning job: {jobs[0]}"]
    files = [client.files.create(file=ROWS, purpose="fine-tune").id for _ in range(2)]
    found = [file.id for _, file in zip(range(100), client.files.list(limit=1, order="asc"), strict=False)]
    assert found == [service.seeded.training_file, *files]


def test_a_job_that_succeeded(service: Service, client: openai.OpenAI) -> None:
    job_id, file_id = submit_job(service.database, service.seeded), new_id("file-")
    name = f"ft:{service.seeded.model}:{service.seeded.team_id}:mine:{job_id[-8:]}"
    with FileStore(service.settings).writing(file_id) as file:
        file.write(b"step,train_loss\n1,2.5\n")
    with service.database.writing() as session:
        job = session.get_one(Job, job_id)
        job.state, job.fine_tuned_model, job.result_files = JobState.SUCCEEDED, name, [file_id]
        job.trained_tokens, job.finished_at = 1234, database_now()
        owned: dict[str, Any] = {"team_id": service.seeded.team_id, "created_at": database_now()}
        session.add(FineTunedModel(id=name, job_id=job_id, base_model=job.model, **owned))
        session.add(
            JobCheckpoint(
                id="ftckpt_1", job_id=job_id, step=8, folder="step-8", metrics={"train_loss": 2.5}, created_at=1e9
            )
        )
        session.add(
            StoredFile(
                id=file_id, purpose="fine-tune-results", filename="metrics.csv", bytes=22, status="processed", **owned
            )
        )
    done = client.fine_tuning.jobs.retrieve(job_id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens, done.error) == ("succeeded", name, 1234, None)
    assert client.files.content(done.result_files[0]).read() == b"step,train_loss\n1,2.5\n"
    assert client.files.retrieve(file_id).purpose == "fine-tune-results"
    assert client.models.retrieve(name).owned_by == service.seeded.team_id
    assert {model.id for model in client.models.list()} == {name, service.seeded.model}
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job_id)
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (8, 2.5)


def test_every_state_passes_strict_mode(service: Service, subtests: pytest.Subtests) -> None:
    job_id = submit_job(service.database, service.seeded)
    with service.client(strict=True) as client:
        for state in JobState:
            with subtests.test(state=state):
                with service.database.writing() as session:
                    job = session.get_one(Job, job_id)
                    job.state, job.error = state, {"code": "oom", "message": "out of memory", "param": None}
                found = client.fine_tuning.jobs.retrieve(job_id)
                assert found.model_extra is not None
                assert found.model_extra["jenga"]["state"] == state
                assert (found.error.code if found.error else None) == ("oom" if state is JobState.FAILED else None)


def test_errors_become_the_clients_exceptions(service: Service, client: openai.OpenAI) -> None:
    seeded = service.seeded
    with pytest.raises(openai.NotFoundError) as caught:
        client.fine_tuning.jobs.create(model="gpt-9", training_file=seeded.training_file)
    error = caught.value
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert error.request_id is not None
    with pytest.raises(openai.BadRequestError) as rejected:
        client.fine_tuning.jobs.create(
            model=seeded.model, training_file=seeded.training_file, extra_body={"jenga": {"keep_fraction": 1.5}}
        )
    assert rejected.value.param == "jenga.selection.keep_fraction"
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=ROWS, purpose="assistants")
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("../../etc/passwd")
    with pytest.raises(openai.AuthenticationError) as refused, service.client(key="wrong") as stranger:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_conflict_is_not_asked_again(service: Service) -> None:
    job_id = submit_job(service.database, service.seeded)
    with service.database.writing() as session:
        session.get_one(Job, job_id).state = JobState.SUCCEEDED
    with service.client(max_retries=2) as client, pytest.raises(openai.ConflictError) as caught:
        client.fine_tuning.jobs.cancel(job_id)
    assert caught.value.code == "job_state_conflict"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_checking_a_large_file_does_not_stop_the_server(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    checking, answered = threading.Event(), threading.Event()

    def slow_check(_path: Path) -> int:
        checking.set()
        assert answered.wait(30), "nothing else was answered while a file was being checked"
        return 1

    monkeypatch.setattr("jenga_core.service.files.registration.count_rows", slow_check)
    with service.client() as client:
        upload = threading.Thread(target=client.files.create, kwargs={"file": ROWS, "purpose": "fine-tune"})
        upload.start()
        try:
            assert checking.wait(30)
            client.models.list()
        finally:
            answered.set()
            upload.join(30)
        assert len(list(client.files.list())) == 2

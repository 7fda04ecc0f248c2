"""Doorbells that come too often, not at all, or find no broker."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from jenga_core.service.jobs import lifecycle, queue
from jenga_core.service.jobs.state import JobState
from tests.chaos.stack import BACKENDS, running
from tests.support.broker import doorbell
from tests.support.jobs import new_job
from tests.support.processes import until

DOWN_SECONDS = 60

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_message_fifty_times_to_four_workers_runs_once(backend: str, tmp_path: Path) -> None:
    hosts = {f"h{number}": f"{number}a" for number in range(4)}
    with running(backend, tmp_path, hosts=hosts) as stack:
        job_id = stack.submit()
        with doorbell(stack.settings):
            for _ in range(50):
                assert queue.ring(job_id)
        until(lambda: stack.ended([job_id]), 120)
        until(lambda: _pending(stack.settings) == 0, 60)
        stack.verify([job_id])
        told = stack.messages(job_id)
        assert sum(message.startswith("Fine-tuning job started") for message in told) == 1
        assert stack.job(job_id).attempt == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lost_message_is_replaced_within_ten_seconds(backend: str, tmp_path: Path) -> None:
    with running(backend, tmp_path) as stack:
        assert stack.seeded is not None
        queue.celery_app.conf.broker_url = None  # whoever submits here has no broker to ring
        with stack.database.writing() as session:
            job_id = lifecycle.submit(session, new_job(stack.seeded)).id
        until(lambda: stack.ended([job_id]), 60)
        job = stack.job(job_id)
        assert job.rung_at is not None
        assert job.started_at is not None
        assert 0 < job.rung_at - job.created_at < 10
        assert job.started_at - job.created_at < 12
        stack.verify([job_id])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_broker_submissions_are_accepted_and_run_later(backend: str, tmp_path: Path) -> None:
    with running(backend, tmp_path) as stack:
        assert stack.seeded is not None
        key = stack.settings.admin_key_file.read_text().strip()
        address = f"http://127.0.0.1:{stack.port}/v1"
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
            uploaded = client.post(
                "/files", files={"file": ("t.jsonl", b'{"text": "steady"}\n')}, data={"purpose": "fine-tune"}
            )
            stack.broker.kill()
            jobs = []
            started = time.monotonic()
            while time.monotonic() - started < DOWN_SECONDS:
                body = {
                    "model": stack.seeded.model,
                    "training_file": uploaded.json()["id"],
                    "jenga": {"context_length_tokens": 256},
                }
                asked = time.monotonic()
                answer = client.post("/fine_tuning/jobs", json=body, timeout=30)
                assert answer.status_code == 200, answer.text
                assert time.monotonic() - asked < 2
                jobs.append(answer.json()["id"])
                time.sleep(10)
        assert all(stack.job(job).state == JobState.QUEUED for job in jobs)
        stack.mend()
        until(lambda: stack.ended(jobs), 120)
        stack.verify(jobs)


def _pending(settings: object) -> int:
    with doorbell(settings):  # type: ignore[arg-type]
        return queue.pending()

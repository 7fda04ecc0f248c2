"""The stream of a job's events: cut a hundred times it loses and repeats nothing, and it ends when the job has."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from api.routes import events as events_route
from jenga_core.service.accounts import keys
from jenga_core.service.jobs import events, lifecycle
from jenga_core.service.jobs.state import JobState
from tests.contract.conftest import Service
from tests.support.jobs import force, submit_job

RECONNECTS = 100


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_route, "POLL_SECONDS", 0.01)


@contextmanager
def stream(service: Service, job_id: str, last: str | None = None, **params: Any) -> Iterator[httpx.Response]:
    headers = {"Authorization": f"Bearer {service.key}", **({"Last-Event-ID": last} if last else {})}
    url = f"http://{service.host}:{service.port}/v1/fine_tuning/jobs/{job_id}/events"
    with httpx.stream("GET", url, params={"stream": "true", **params}, headers=headers, timeout=30) as response:
        yield response


def messages(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Events as a browser's EventSource gives them, with `id` as it would send it back."""
    found: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            found[name] = value
        elif "data" in found:
            data = json.loads(found["data"])
            assert data["id"] == found["id"]
            yield data
            found = {}


def test_cut_a_hundred_times_it_loses_and_repeats_nothing(service: Service) -> None:
    job_id = submit_job(service.database, service.seeded)
    force(service.database, job_id, JobState.RUNNING, token="t", lease=600)
    cuts, seen, last = 0, [], None
    enough = threading.Event()

    def write() -> None:
        for number in range(10_000):
            with service.database.writing() as session:
                events.append(session, job_id, f"event {number}")
            if enough.is_set():
                break
        with service.database.writing() as session:
            events.append(session, job_id, "the last one")
            lifecycle.settle(session, job_id, "t", JobState.SUCCEEDED)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while cuts < RECONNECTS:
            with stream(service, job_id, last) as response:
                for count, message in enumerate(messages(response)):
                    seen.append(message)
                    last = message["id"]
                    if count >= cuts % 4:
                        break
            cuts += 1
    finally:
        enough.set()
        writer.join(60)
    with stream(service, job_id, last) as response:
        seen += messages(response)  # to its end, which comes because the job has ended
    numbers = [int(message["id"].rpartition("-")[2]) for message in seen]
    assert numbers == list(range(1, len(seen) + 1))
    assert seen[-1]["message"] == "the last one"
    with stream(service, job_id, seen[-1]["id"]) as response:
        assert response.status_code == 204


def test_the_whole_of_a_job_that_has_ended(service: Service) -> None:
    job_id = submit_job(service.database, service.seeded)
    with service.database.writing() as session:
        lifecycle.request_cancel(session, job_id)
    with stream(service, job_id) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        assert [each["message"] for each in messages(response)] == [
            f"Created fine-tuning job: {job_id}",
            "The job was cancelled before it ran",
        ]
    with stream(service, job_id, after=f"ftevent-{job_id.removeprefix('ftjob-')}-1") as response:
        assert len(list(messages(response))) == 1


def test_more_events_than_a_batch(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_route, "BATCH", 3)
    job_id = submit_job(service.database, service.seeded)
    with service.database.writing() as session:
        for number in range(10):
            events.append(session, job_id, f"event {number}")
        lifecycle.request_cancel(session, job_id)
    with stream(service, job_id) as response:
        assert len(list(messages(response))) == 12


def test_a_quiet_stream_has_a_heartbeat(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_route, "HEARTBEAT_SECONDS", 0.05)
    job_id = submit_job(service.database, service.seeded)
    with stream(service, job_id) as response:
        comments = (line for line in response.iter_lines() if line.startswith(":"))
        assert [next(comments) for _ in range(3)] == [": still here"] * 3


def test_a_stream_is_cut_after_its_time_and_goes_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_route, "STREAM_SECONDS", 0.05)
    job_id = submit_job(service.database, service.seeded)
    with stream(service, job_id) as response:
        (first,) = messages(response)
    with service.database.writing() as session:
        events.append(session, job_id, "later")
    with stream(service, job_id, first["id"]) as response:
        assert [each["message"] for each in messages(response)] == ["later"]


def test_a_revoked_key_ends_its_streams(service: Service) -> None:
    job_id = submit_job(service.database, service.seeded)
    with stream(service, job_id) as response:
        received = messages(response)
        next(received)
        with service.database.writing() as session:
            keys.revoke(session, keys.key_id_of(service.key))
        assert list(received) == []


@pytest.mark.parametrize("last", ["unknown", "ftevent-other-1", "ftevent-{}-99"])
def test_an_event_that_is_not_the_jobs_is_an_error(service: Service, last: str) -> None:
    job_id = submit_job(service.database, service.seeded)
    with stream(service, job_id, last.format(job_id.removeprefix("ftjob-"))) as response:
        assert response.status_code == 400
        assert json.loads(response.read())["error"]["code"] == "invalid_cursor"

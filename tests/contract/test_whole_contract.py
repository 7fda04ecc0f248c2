"""The rest of the contract over the wire: parts, ranges, pausing, deleting, lost answers, webhooks, async."""

from __future__ import annotations

import asyncio
import hashlib
import io
from typing import Any

import httpx2
import openai
import pytest
from openai.types.webhooks import FineTuningJobCancelledWebhookEvent

from jenga_core.service.db.models import FineTunedModel, JobCheckpoint
from jenga_core.service.jobs import events
from jenga_core.service.jobs.state import JobState
from jenga_core.service.webhooks import delivery
from tests.contract.conftest import Service
from tests.support.jobs import force, submit_job
from tests.support.receiver import receiving

ROWS = b'{"prompt": "2 + 2 =", "completion": " 4"}\n' * 50
JENGA = {"jenga": {"context_length_tokens": 128, "max_steps": 3}}


def test_an_upload_in_parts(client: openai.OpenAI) -> None:
    upload = client.uploads.create(
        bytes=len(ROWS), filename="big.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    parts = [client.uploads.parts.create(upload.id, data=ROWS[at : at + 1000]).id for at in range(0, len(ROWS), 1000)]
    assert parts[0].startswith("part_")
    done = client.uploads.complete(upload.id, part_ids=parts, md5=hashlib.md5(ROWS).hexdigest())
    assert done.status == "completed"
    assert done.file is not None
    assert client.files.content(done.file.id).read() == ROWS
    other = client.uploads.create(bytes=10, filename="a", mime_type="b", purpose="fine-tune")
    assert client.uploads.cancel(other.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.uploads.parts.create(other.id, data=b"x")


def test_the_clients_own_chunked_upload(client: openai.OpenAI) -> None:
    upload = client.uploads.upload_file_chunked(
        file=ROWS,
        filename="big.jsonl",
        bytes=len(ROWS),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=999,
    )
    assert upload.status == "completed"


def test_a_part_of_a_file(service: Service, client: openai.OpenAI) -> None:
    uploaded = client.files.create(file=ROWS, purpose="fine-tune")
    part = client.files.content(uploaded.id, extra_headers={"Range": "bytes=10-19"})
    assert (part.response.status_code, part.read()) == (206, ROWS[10:20])
    assert part.response.headers["content-range"] == f"bytes 10-19/{len(ROWS)}"
    tail = client.files.content(uploaded.id, extra_headers={"Range": "bytes=-5"})
    assert tail.read() == ROWS[-5:]
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.content(uploaded.id, extra_headers={"Range": f"bytes={len(ROWS)}-"})
    assert caught.value.status_code == 416


def test_a_file_that_expires(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=io.BytesIO(ROWS), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None
    assert abs(file.expires_at - file.created_at - 3600) <= 1


def test_pause_and_resume(service: Service, client: openai.OpenAI) -> None:
    job_id = submit_job(service.database, service.seeded)
    paused = client.fine_tuning.jobs.pause(job_id)
    assert paused.status == "queued"
    assert paused.model_extra is not None
    assert paused.model_extra["jenga"]["state"] == "paused"
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"
    force(service.database, job_id, JobState.SUCCEEDED)
    with pytest.raises(openai.ConflictError) as caught:
        client.fine_tuning.jobs.pause(job_id)
    assert caught.value.code == "job_state_conflict"


def test_models_that_jobs_made_can_be_deleted(service: Service, client: openai.OpenAI) -> None:
    name, seeded = "ft:org/base:blue:mine:1", service.seeded
    job_id = submit_job(service.database, seeded)
    with service.database.writing() as session:
        owned: dict[str, Any] = {"team_id": seeded.team_id, "job_id": job_id, "base_model": seeded.model}
        session.add(FineTunedModel(id=name, created_at=1e9, **owned))
    deleted = client.models.delete(name)
    assert (deleted.id, deleted.deleted) == (name, True)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    with pytest.raises(openai.PermissionDeniedError, match="base model"):
        client.models.delete(seeded.model)


def test_three_pages_of_everything_hold_every_id_once(service: Service, client: openai.OpenAI) -> None:
    jobs = [submit_job(service.database, service.seeded, tags={"n": str(n % 2)}, created_at=1e9) for n in range(6)]
    with service.database.writing() as session:
        for number in range(5):
            events.append(session, jobs[0], f"event {number}")
            row = {"step": number, "folder": f"s{number}", "metrics": {}, "created_at": 1e9}
            session.add(JobCheckpoint(id=f"ftckpt_{number}", job_id=jobs[0], **row))
    calls = client.fine_tuning.jobs
    walks: list[tuple[Any, int]] = [
        (calls.list(limit=2), 6),
        (calls.list(limit=1, metadata={"n": "1"}), 3),
        (calls.list_events(jobs[0], limit=2), 6),
        (calls.checkpoints.list(jobs[0], limit=2), 5),
    ]
    for first_page, count in walks:
        found = [item.id for _, item in zip(range(100), first_page, strict=False)]
        assert len(found) == len(set(found)) == count
    with pytest.raises(openai.BadRequestError) as caught:
        calls.list(after="ftjob-unknown")
    assert (caught.value.code, caught.value.param) == ("invalid_cursor", "after")


class _Lossy(httpx2.HTTPTransport):
    """Loses the answers to the first creates, as a network does: the server has done its work by then."""

    def __init__(self, lose: int) -> None:
        super().__init__()
        self.left = lose

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        if request.method == "POST" and self.left > 0:
            self.left -= 1
            response.read()
            raise httpx2.ReadError("the connection broke", request=request)
        return response


def test_a_lost_answer_never_makes_two_jobs(service: Service) -> None:
    with service.client(max_retries=2) as plain:
        lossy = plain.with_options(http_client=httpx2.Client(transport=_Lossy(2)))
        fields: dict[str, Any] = {"model": service.seeded.model, "training_file": service.seeded.training_file}
        job = lossy.fine_tuning.jobs.create(**fields, extra_body=JENGA)
        assert [each.id for each in plain.fine_tuning.jobs.list()] == [job.id]
        another = plain.fine_tuning.jobs.create(**fields, extra_body=JENGA)
        assert another.id != job.id
        keyed = {"Idempotency-Key": "mine"}
        twice = [plain.fine_tuning.jobs.create(**fields, extra_headers=keyed, extra_body=JENGA).id for _ in range(2)]
        assert twice[0] == twice[1]
        lossy.close()


def test_the_client_accepts_our_webhooks_and_no_others(service: Service) -> None:
    settings = service.settings.model_copy(update={"webhooks_to_private_addresses": True})
    service.app.state.settings.__dict__["webhooks_to_private_addresses"] = True
    with receiving() as receiver, service.client() as client:
        made = client.post("/webhooks", body={"url": receiver.url}, cast_to=object)
        assert isinstance(made, dict)
        job_id = submit_job(service.database, service.seeded)
        client.fine_tuning.jobs.cancel(job_id)
        delivery.deliver(settings, service.database)
        ((headers, body),) = receiver.came
        event = client.webhooks.unwrap(body.decode(), headers, secret=made["secret"])
        assert isinstance(event, FineTuningJobCancelledWebhookEvent)
        assert event.data.id == job_id
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.decode().replace(job_id, "ftjob-other"), headers, secret=made["secret"])


def test_the_async_client(service: Service) -> None:
    async def use() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"http://{service.host}:{service.port}/v1", api_key=service.key, max_retries=0
        ) as client:
            uploads = [client.files.create(file=ROWS, purpose="fine-tune") for _ in range(3)]
            files = [file.id for file in await asyncio.gather(*uploads)]
            create = client.fine_tuning.jobs.create
            asked = [create(model=service.seeded.model, training_file=file, extra_body=JENGA) for file in files]
            made = {job.id for job in await asyncio.gather(*asked)}
            found = [job.id async for job in client.fine_tuning.jobs.list(limit=1)]
            assert len(found) == 3
            assert set(found) == made
            cancelled = await asyncio.gather(*(client.fine_tuning.jobs.cancel(job) for job in made))
            assert {job.status for job in cancelled} == {"cancelled"}
            with pytest.raises(openai.NotFoundError):
                await client.fine_tuning.jobs.retrieve("ftjob-unknown")

    asyncio.run(use())


def test_every_answer_has_a_request_id(service: Service) -> None:
    with httpx2.Client(base_url=f"http://{service.host}:{service.port}") as bare:
        key = {"Authorization": f"Bearer {service.key}"}
        answers = [
            bare.get("/v1/models", headers=key),
            bare.get("/v1/models"),
            bare.get("/v1/nothing", headers=key),
            bare.put("/v1/files", headers=key),
            bare.post("/v1/fine_tuning/jobs", headers=key, json={}),
            bare.get("/healthz"),
        ]
    assert [answer.status_code for answer in answers] == [200, 401, 404, 405, 400, 200]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)

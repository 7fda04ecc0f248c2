"""Fine-tuning jobs and their checkpoints, in OpenAI's shapes. Their events are in routes/events.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from sqlalchemy.orm import Session

from api.dependencies import After, CurrentDatabase, CurrentPrincipal, CurrentSettings, Limit
from api.errors import BadRequest
from api.schemas.create_job import CreateJob
from api.schemas.fine_tuning import CheckpointObject, FineTuningJob
from api.schemas.lists import ListOf
from jenga_core.service import audit
from jenga_core.service.accounts import idempotency, quotas, teams
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import events, lifecycle, repository, spec
from jenga_core.service.jobs.state import JobState
from jenga_core.service.metrics import details

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

_METADATA_ENTRY = re.compile(r"metadata\[(.*)\]", re.DOTALL)

IdempotencyKey = Annotated[
    str | None,
    Header(max_length=255, description="Of the caller's making: asking again with it finds the job that it made"),
]
RetryCount = Annotated[str | None, Header(alias="x-stainless-retry-count", include_in_schema=False)]


@router.post("")
def create_job(
    body: CreateJob,
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    settings: CurrentSettings,
    idempotency_key: IdempotencyKey = None,
    retry_count: RetryCount = None,
) -> FineTuningJob:
    """Queue a fine-tuning job. A request that is refused leaves none; one that is repeated finds its job."""
    request = body.to_request()
    body_sha256 = idempotency.digest(body.model_dump(mode="json"))
    is_retry = retry_count is not None and retry_count.isdecimal() and int(retry_count[:9]) > 0
    with database.writing() as session:
        team = teams.get(session, principal.team_id, lock=True)
        job = idempotency.made_before(
            session, principal.key_id, body_sha256, idempotency_key=idempotency_key, is_retry=is_retry
        )
        if job is None:
            quotas.check_new_job(session, team)
            job = lifecycle.submit(session, spec.job_of(session, team.id, request, settings))
            idempotency.remember(session, principal.key_id, job.id, body_sha256, idempotency_key)
            audit.record(session, principal, "job.create", job.id, model=job.model, training_file=job.training_file)
            for warning in spec.warnings(job):
                events.append(session, job.id, warning, level="warn")
        session.flush()
        return _public(session, job)


_FILTER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "`metadata[key]=value`: jobs with these entries. `metadata=null`: jobs without any",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


@router.get("", openapi_extra={"parameters": [_FILTER]})
def list_jobs(
    request: Request, principal: CurrentPrincipal, database: CurrentDatabase, after: After = None, limit: Limit = 20
) -> ListOf[FineTuningJob]:
    """The team's jobs, newest first. `metadata[key]=value` filters; `metadata=null` finds those without any."""
    filters = _metadata_filters(request)
    with database.reading() as session:
        page = repository.page(session, principal.team_id, after=after, limit=limit, **filters)
        found = details.of_jobs(session, page.rows)
        return ListOf[FineTuningJob].of(page, lambda job: FineTuningJob.of(job, found[job.id]))


@router.get("/{job_id}")
def retrieve_job(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """One job."""
    with database.reading() as session:
        return _public(session, repository.get(session, principal.team_id, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """Cancel a job: at once while it waits, at its next step while it runs. 409 when it has ended."""
    return _ask(database, principal, job_id, "job.cancel", lifecycle.request_cancel)


@router.post("/{job_id}/pause")
def pause_job(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """Save the job and free its devices; `status` reads `queued` then, `jenga.state` `paused`.

    409, with the stage's name, when it is about to end by itself.
    """
    return _ask(database, principal, job_id, "job.pause", lifecycle.request_pause)


@router.post("/{job_id}/resume")
def resume_job(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """Queue a paused job again; it goes on from its newest checkpoint. 409 when it is not paused."""
    with database.reading() as session:
        quotas.check_gpu_hours(session, teams.get(session, principal.team_id))
    return _ask(database, principal, job_id, "job.resume", lifecycle.resume)


@router.post("/{job_id}/stop")
def stop_job(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """Finish now with what is trained: a last checkpoint, evaluation, and the model. The job succeeds.

    409 before anything is trained (cancel it instead) and when training is over already.
    """
    return _ask(database, principal, job_id, "job.stop", lifecycle.request_stop)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, principal: CurrentPrincipal, database: CurrentDatabase, after: After = None, limit: Limit = 10
) -> ListOf[CheckpointObject]:
    """States the job can go on from, newest first."""
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        page = repository.checkpoints(session, job, after=after, limit=limit)
        return ListOf[CheckpointObject].of(page, CheckpointObject.of)


def _ask(
    database: Database,
    principal: Principal,
    job_id: str,
    action: str,
    request: Callable[[Session, str], JobState],
) -> FineTuningJob:
    """Ask the lifecycle for something and show the job as it is then."""
    with database.writing() as session:
        job = repository.get(session, principal.team_id, job_id)
        request(session, job.id)
        audit.record(session, principal, action, job.id)
        session.refresh(job)
        return _public(session, job)


def _public(session: Session, job: Job) -> FineTuningJob:
    return FineTuningJob.of(job, details.of_jobs(session, [job])[job.id])


def _metadata_filters(request: Request) -> dict[str, Any]:
    """The metadata filter as `repository.page` takes it; on the wire it is `metadata[key]=value` or `metadata=null`."""
    query = request.query_params
    entries = {found[1]: value for name, value in query.items() if (found := _METADATA_ENTRY.fullmatch(name))}
    if "metadata" not in query:
        return {"metadata": entries}
    if query["metadata"] != "null" or entries:
        raise BadRequest("Filter with metadata[key]=value, or with metadata=null alone", param="metadata")
    return {"without_metadata": True}

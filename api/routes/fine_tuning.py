"""Fine-tuning jobs, their events and checkpoints, in OpenAI's shapes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.dependencies import After, CurrentDatabase, CurrentPrincipal
from api.errors import BadRequest
from api.schemas.fine_tuning import CheckpointObject, CreateJob, EventObject, FineTuningJob
from api.schemas.lists import ListOf
from jenga_core.service.jobs import events, lifecycle, repository, spec

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=1000)]

_METADATA_ENTRY = re.compile(r"metadata\[(.*)\]", re.DOTALL)


@router.post("")
def create_job(body: CreateJob, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """Queue a fine-tuning job. A request that is refused leaves none."""
    request = body.to_request()
    with database.writing() as session:
        job = lifecycle.submit(session, spec.job_of(session, principal.team_id, request))
        for warning in spec.warnings(job):
            events.append(session, job.id, warning, level="warn")
        return FineTuningJob.of(job)


@router.get("")
def list_jobs(
    request: Request, principal: CurrentPrincipal, database: CurrentDatabase, after: After = None, limit: Limit = 20
) -> ListOf[FineTuningJob]:
    """The team's jobs, newest first. `metadata[key]=value` filters; `metadata=null` finds those without any."""
    filters = _metadata_filters(request)
    with database.reading() as session:
        page = repository.page(session, principal.team_id, after=after, limit=limit, **filters)
        return ListOf[FineTuningJob].of(page, FineTuningJob.of)


@router.get("/{job_id}")
def retrieve_job(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """One job."""
    with database.reading() as session:
        return FineTuningJob.of(repository.get(session, principal.team_id, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> FineTuningJob:
    """Cancel a job: at once while it waits, at its next step while it runs. 409 when it has ended."""
    with database.writing() as session:
        job = repository.get(session, principal.team_id, job_id)
        lifecycle.request_cancel(session, job.id)
        session.refresh(job)
        return FineTuningJob.of(job)


@router.get("/{job_id}/events")
def list_events(
    job_id: str, principal: CurrentPrincipal, database: CurrentDatabase, after: After = None, limit: Limit = 20
) -> ListOf[EventObject]:
    """What happened, newest first."""
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        return ListOf[EventObject].of(repository.events(session, job, after=after, limit=limit), EventObject.of)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, principal: CurrentPrincipal, database: CurrentDatabase, after: After = None, limit: Limit = 10
) -> ListOf[CheckpointObject]:
    """States the job can go on from, newest first."""
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        page = repository.checkpoints(session, job, after=after, limit=limit)
        return ListOf[CheckpointObject].of(page, CheckpointObject.of)


def _metadata_filters(request: Request) -> dict[str, Any]:
    """The metadata filter as `repository.page` takes it; on the wire it is `metadata[key]=value` or `metadata=null`."""
    query = request.query_params
    entries = {found[1]: value for name, value in query.items() if (found := _METADATA_ENTRY.fullmatch(name))}
    if "metadata" not in query:
        return {"metadata": entries}
    if query["metadata"] != "null" or entries:
        raise BadRequest("Filter with metadata[key]=value, or with metadata=null alone", param="metadata")
    return {"without_metadata": True}

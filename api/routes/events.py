"""What happened to a job: as a list, newest first, or as a stream of server-sent events, oldest first.

    id: ftevent-<job>-7          goes into Last-Event-ID when the browser reconnects
    data: {"id": ..., "message": ...}

The stream reads the numbered rows that the list shows, so it misses and repeats nothing, whoever wrote them and however
often it is cut. It ends after the last event of a job that has ended; who comes back then gets 204, upon which a
browser's EventSource stops.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, format_sse_event
from sqlalchemy import select

from api.dependencies import After, CurrentDatabase, CurrentPrincipal, Limit
from api.schemas.fine_tuning import EventObject
from api.schemas.lists import ListOf
from jenga_core.service.accounts import keys
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import repository
from jenga_core.service.jobs.state import JobState

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/events", tags=["fine-tuning"])

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
"""A comment after so long without an event keeps proxies from closing the connection."""

STREAM_SECONDS = 3600.0
"""A stream is cut after so long, and goes on when the client reconnects: a server that is being replaced gets free."""

BATCH = 200
RETRY_MILLISECONDS = 1000

LastEventId = Annotated[str | None, Header(max_length=200, description="For a stream: the last event that came")]
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "Nothing is left to stream: the job has ended and the caller knows it all"},
}


@router.get("", response_model=ListOf[EventObject], responses=_STREAM)
async def list_events(
    job_id: str,
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    after: After = None,
    limit: Limit = 20,
    stream: Annotated[bool, Query(description="Oldest first, as server-sent events, until the job has ended")] = False,
    last_event_id: LastEventId = None,
) -> ListOf[EventObject] | Response:
    """What happened, newest first; with `stream=true` as it happens."""
    if not stream:
        return await run_in_threadpool(_page, database, principal, job_id, after, limit)
    seq, over = await run_in_threadpool(_start, database, principal, job_id, last_event_id or after)
    if over:
        return Response(status_code=204)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return EventSourceResponse(_stream(database, principal, job_id, seq), headers=headers)


def _page(database: Database, principal: Principal, job_id: str, after: str | None, limit: int) -> ListOf[EventObject]:
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        return ListOf[EventObject].of(repository.events(session, job, after=after, limit=limit), EventObject.of)


def _start(database: Database, principal: Principal, job_id: str, after: str | None) -> tuple[int, bool]:
    """The number of the event to begin behind, and whether nothing will ever follow it."""
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        seq = 0 if after is None else repository.seq_after(job, after)
        return seq, JobState(job.state).is_terminal and seq == job.event_seq


async def _stream(database: Database, principal: Principal, job_id: str, seq: int) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    began = quiet_since = time.monotonic()
    while time.monotonic() < began + STREAM_SECONDS:
        found, over = await run_in_threadpool(_poll, database, principal, job_id, seq)
        for event in found:
            seq, quiet_since = seq + 1, time.monotonic()
            yield format_sse_event(id=event.id, data_str=event.model_dump_json())
        if over:
            return
        if time.monotonic() > quiet_since + HEARTBEAT_SECONDS:
            quiet_since = time.monotonic()
            yield format_sse_event(comment="still here")
        if len(found) < BATCH:
            await anyio.sleep(POLL_SECONDS)


def _poll(database: Database, principal: Principal, job_id: str, seq: int) -> tuple[list[EventObject], bool]:
    """The next events, and whether the stream ends after them: the job has ended, or the key opens nothing any more."""
    with database.reading() as session:
        if not keys.is_valid(session, principal.key_id):
            return [], True
        state, newest = session.execute(select(Job.state, Job.event_seq).where(Job.id == job_id)).one()
        found = repository.events_since(session, job_id, seq, limit=BATCH) if newest > seq else []
        return [EventObject.of(event) for event in found], JobState(state).is_terminal and seq + len(found) >= newest

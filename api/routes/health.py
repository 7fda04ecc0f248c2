"""Is this process alive, is it fit to serve, and how busy is it?

/healthz    open    the process answers; a supervisor that gets nothing here starts it again
/readyz     open    it can do its work; a load balancer that gets 503 here sends requests elsewhere
/metrics    admin   for Prometheus: `authorization: {credentials: KEY}` in its scrape configuration
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from api.auth import principal_of, require
from api.dependencies import CurrentDatabase, CurrentFiles, CurrentSettings
from api.errors import Unavailable
from api.schemas.bodies import Answer
from jenga_core.service.accounts.keys import Scope
from jenga_core.service.db.models import Team

router = APIRouter(tags=["health"])


class Health(Answer):
    """The answer of a process that is alive."""

    status: Literal["ok"] = "ok"


class Readiness(Answer):
    """The answer when all is well."""

    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    files: Literal["ok"] = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """200 while the process answers."""
    return Health()


@router.get("/readyz")
def readyz(database: CurrentDatabase, store: CurrentFiles) -> Readiness:
    """200 when the database answers and has its tables, and the file store can be written, else 503.

    The broker is not asked: without it jobs are accepted, and run once a worker looks at the database.
    """
    try:
        with database.reading() as session:
            session.execute(select(Team.id, Team.max_storage_bytes).limit(1))
    except DBAPIError as error:
        raise Unavailable(
            f"The database cannot be used ({type(error.orig).__name__}); is it up, and migrated (`jenga migrate`)?",
            code="database_unavailable",
        ) from error
    if not store.is_writable():
        raise Unavailable("The file store cannot be written; is its disk mounted?", code="files_unavailable")
    return Readiness()


@router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE_LATEST: {}}}})
def metrics(request: Request, database: CurrentDatabase, settings: CurrentSettings) -> Response:
    """Jobs, devices, files and requests, in Prometheus's text format. Numbers of all teams, so it needs `admin`."""
    require(principal_of(request, database, settings.pepper), Scope.ADMIN)
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)

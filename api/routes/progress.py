"""What a job measured: the numbers behind the status page's plots. Jenga's own, below OpenAI's job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from api.dependencies import CurrentDatabase, CurrentPrincipal
from api.schemas.lists import ListOf
from api.schemas.progress import MemoryObject, MetricObject, SelectionObject
from jenga_core.service.db.models import Job, JobMetric, JobSelection
from jenga_core.service.jobs import repository
from jenga_core.service.jobs.repository import PerStep
from jenga_core.service.metrics.series import thinned
from jenga_core.service.pagination import Page

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}", tags=["progress"])

AfterStep = Annotated[int, Query(ge=-1, lt=2**31, description="Only later steps; poll with the last one seen")]
Limit = Annotated[int, Query(ge=1, le=10_000)]
MaxPoints = Annotated[
    int | None,
    Query(ge=2, le=10_000, description="At most so many steps, evenly spread over all; in place of pages"),
]


@router.get("/metrics")
def list_metrics(
    job_id: str,
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    after_step: AfterStep = -1,
    limit: Limit = 10_000,
    max_points: MaxPoints = None,
) -> ListOf[MetricObject]:
    """Loss, learning rate and speed, step by step."""
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        page = _steps(session, job, JobMetric, after_step, limit, max_points)
        return ListOf[MetricObject].of(page, MetricObject.model_validate)


@router.get("/memory")
def list_memory(job_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> ListOf[MemoryObject]:
    """Bytes by kind, phase by phase; `dense_reference` is the dense step to compare with."""
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        page = Page(repository.memory(session, job), has_more=False)
        return ListOf[MemoryObject].of(page, MemoryObject.model_validate)


@router.get("/selection")
def list_selections(
    job_id: str,
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    after_step: AfterStep = -1,
    limit: Limit = 10_000,
    max_points: MaxPoints = None,
) -> ListOf[SelectionObject]:
    """Which blocks stayed involved, and how large a share of the tokens in each layer."""
    with database.reading() as session:
        job = repository.get(session, principal.team_id, job_id)
        page = _steps(session, job, JobSelection, after_step, limit, max_points)
        return ListOf[SelectionObject].of(page, SelectionObject.of)


def _steps(
    session: Session, job: Job, table: type[PerStep], after_step: int, limit: int, max_points: int | None
) -> Page[PerStep]:
    if max_points is None:
        return repository.per_step(session, job, table, after_step=after_step, limit=limit)
    return Page(thinned(session, job, table, after_step=after_step, max_points=max_points), has_more=False)

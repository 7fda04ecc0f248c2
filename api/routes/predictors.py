"""Predictors of block scores that the team's jobs made. Jenga's own, beside OpenAI's models."""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import After, CurrentDatabase, CurrentPrincipal, Limit
from api.schemas.lists import ListOf
from api.schemas.predictors import PredictorObject
from jenga_core.service.models import predictors

router = APIRouter(prefix="/v1/predictors", tags=["predictors"])


@router.get("")
def list_predictors(
    principal: CurrentPrincipal, database: CurrentDatabase, after: After = None, limit: Limit = 20
) -> ListOf[PredictorObject]:
    """The team's predictors, newest first."""
    with database.reading() as session:
        page = predictors.page(session, principal.team_id, after=after, limit=limit)
        return ListOf[PredictorObject].of(page, PredictorObject.of)

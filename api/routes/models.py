"""Models: the base models that jobs may name, and those that the team's jobs made."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import select

from api.dependencies import CurrentDatabase, CurrentPrincipal
from api.errors import Forbidden
from api.schemas.lists import ListOf
from api.schemas.models import ModelDeleted, ModelObject
from jenga_core.service import audit
from jenga_core.service.db.models import BaseModelEntry, FineTunedModel
from jenga_core.service.models import registry
from jenga_core.service.pagination import Page

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(principal: CurrentPrincipal, database: CurrentDatabase) -> ListOf[ModelObject]:
    """All of them, base models first, in the order they came."""
    mine = select(FineTunedModel).where(FineTunedModel.team_id == principal.team_id)
    with database.reading() as session:
        base = session.scalars(select(BaseModelEntry).order_by(BaseModelEntry.created_at, BaseModelEntry.id))
        made = session.scalars(mine.order_by(FineTunedModel.created_at, FineTunedModel.id))
        return ListOf[ModelObject].of(Page([*base, *made], has_more=False), ModelObject.of)


@router.get("/{model:path}")
def retrieve_model(model: str, principal: CurrentPrincipal, database: CurrentDatabase) -> ModelObject:
    """One model. Names hold `:` and may hold `/`, hence the path."""
    with database.reading() as session:
        made = session.get(FineTunedModel, model)
        if made is not None and made.team_id == principal.team_id:
            return ModelObject.of(made)
        return ModelObject.of(registry.get(session, model))


@router.delete("/{model:path}")
def delete_model(model: str, principal: CurrentPrincipal, database: CurrentDatabase) -> ModelDeleted:
    """Delete a model that a job of the team made. The job and its result files stay; files have their own DELETE."""
    with database.writing() as session:
        made = session.get(FineTunedModel, model)
        if made is None or made.team_id != principal.team_id:
            registry.get(session, model)
            raise Forbidden(f"{model!r} is a base model of this installation; only fine-tuned models can be deleted")
        session.delete(made)
        audit.record(session, principal, "model.delete", model, job_id=made.job_id)
    return ModelDeleted(id=model)

"""OpenAI's Model object."""

from __future__ import annotations

from typing import Literal

from api.schemas.bodies import Answer
from jenga_core.service.db.models import BaseModelEntry, FineTunedModel


class ModelObject(Answer):
    """A base model of this installation, or a model that a job of the team made."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    """The team, or `jenga` for a base model."""

    @classmethod
    def of(cls, model: BaseModelEntry | FineTunedModel) -> ModelObject:
        """The public form of a row."""
        owner = model.team_id if isinstance(model, FineTunedModel) else "jenga"
        return cls(id=model.id, created=int(model.created_at), owned_by=owner)


class ModelDeleted(Answer):
    """The answer to DELETE."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True

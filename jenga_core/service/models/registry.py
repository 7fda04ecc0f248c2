"""Base models that jobs may name: rows in `base_models`, weights in `DATA_DIR/models/<folder>`."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.errors import NotFoundError
from jenga_core.service.db.models import BaseModelEntry
from jenga_core.service.settings import Settings


def get(session: Session, name: str) -> BaseModelEntry:
    """The base model of that name. Raises NotFoundError, which lists those there are."""
    entry = session.get(BaseModelEntry, name)
    if entry is None:
        known = ", ".join(session.scalars(select(BaseModelEntry.id).order_by(BaseModelEntry.id))) or "none yet"
        raise NotFoundError(
            f"The model {name!r} does not exist. Models on this server: {known}. Add one with `jenga models add`.",
            code="model_not_found",
            param="model",
        )
    return entry


def folder_of(settings: Settings, entry: BaseModelEntry) -> Path:
    """Where its weights, config and tokenizer lie."""
    return settings.folder("models") / entry.folder

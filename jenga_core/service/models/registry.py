"""Base models that jobs may name: rows in `base_models`, weights in `DATA_DIR/models/<folder>`."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.errors import ConfigError, NotFoundError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import BaseModelEntry
from jenga_core.service.models.inspection import inspect_folder
from jenga_core.service.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


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


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` may be a model's: `name` or `org/name`, of letters, digits, dots, dashes."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a model's name: use NAME or ORG/NAME of letters, digits, '.', '_' and '-'",
            param="name",
        )


@contextmanager
def staging(settings: Settings) -> Iterator[Path]:
    """An empty folder beside the models, for one that is not complete yet; gone at the end unless `add` moved it."""
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=settings.folder("models")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def add(session: Session, settings: Settings, name: str, source: str, staged: Path) -> BaseModelEntry:
    """Move a complete folder into place and insert its row.

    The folder first: a row must never name weights that are not there, while a folder without a row (a crash between
    the two) is replaced by the next try. Raises ConfigError when the folder is no usable model.
    """
    check_name(name)
    entry = BaseModelEntry(
        id=name,
        source=source,
        folder=name.replace("/", "--"),
        created_at=database_now(),
        **inspect_folder(staged),
    )
    target = folder_of(settings, entry)
    if target.exists():
        shutil.rmtree(target)
    os.replace(staged, target)
    session.add(entry)
    session.flush()
    return entry

"""Is this process fit to serve? Open to all: it tells nothing but that."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from api.dependencies import CurrentDatabase
from api.errors import Unavailable
from jenga_core.service.db.models import Team

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The answer when all is well."""

    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"


@router.get("/healthz")
def healthz(database: CurrentDatabase) -> Health:
    """200 when the database answers and has its tables, else 503."""
    try:
        with database.reading() as session:
            session.execute(select(Team.id).limit(1))
    except DBAPIError as error:
        raise Unavailable(
            f"The database cannot be used ({type(error.orig).__name__}); is it up, and migrated (`jenga migrate`)?",
            code="database_unavailable",
        ) from error
    return Health()

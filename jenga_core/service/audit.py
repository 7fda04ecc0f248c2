"""The log of who did what: one row per change, in the transaction of the change, so that neither exists alone."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.service import pagination
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import AuditEntry
from jenga_core.service.ids import new_id
from jenga_core.service.pagination import Page


def record(session: Session, principal: Principal, action: str, object_id: str, **details: Any) -> None:
    """Note that the principal did this to that object; `details` must be JSON and free of secrets."""
    session.add(
        AuditEntry(
            id=new_id("audit-"),
            team_id=principal.team_id,
            key_id=principal.key_id,
            action=action,
            object_id=object_id,
            request_id=principal.request_id,
            details=details or None,
            created_at=database_now(),
        )
    )


def page(
    session: Session,
    *,
    after: str | None,
    limit: int,
    team_id: str | None = None,
    action: str | None = None,
    object_id: str | None = None,
) -> Page[AuditEntry]:
    """Entries of all teams, newest first; those that match what is given. Raises CursorError."""
    statement = select(AuditEntry)
    wanted = ((AuditEntry.team_id, team_id), (AuditEntry.action, action), (AuditEntry.object_id, object_id))
    for column, value in wanted:
        if value is not None:
            statement = statement.where(column == value)
    return pagination.by_age(session, statement, AuditEntry, after=after, limit=limit)

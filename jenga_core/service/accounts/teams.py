"""Teams: who owns what. Quotas are columns of the team's row; accounts/quotas.py enforces them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.errors import ConflictError, NotFoundError
from jenga_core.service import pagination
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Team
from jenga_core.service.ids import new_id
from jenga_core.service.pagination import Page


def create_team(session: Session, name: str) -> Team:
    """A new team without quotas. Raises ConflictError when the name is taken."""
    if session.scalars(select(Team).where(Team.name == name)).one_or_none() is not None:
        raise ConflictError(f"There is a team named {name!r} already; choose another name", code="team_exists")
    team = Team(id=new_id("org-"), name=name, created_at=database_now())
    session.add(team)
    session.flush()
    return team


def get_or_create_team(session: Session, name: str) -> Team:
    """The team of that name, made when missing."""
    team = session.scalars(select(Team).where(Team.name == name)).one_or_none()
    return team if team is not None else create_team(session, name)


def get(session: Session, team_id: str, *, lock: bool = False) -> Team:
    """The team; with `lock`, alone until the transaction ends. Raises NotFoundError."""
    team = session.get(Team, team_id, with_for_update=lock or None)
    if team is None:
        raise NotFoundError(f"No such team: {team_id!r}. Teams: GET /v1/teams")
    return team


def page(session: Session, *, after: str | None, limit: int) -> Page[Team]:
    """All teams, oldest first. Raises CursorError."""
    return pagination.by_age(session, select(Team), Team, after=after, limit=limit, newest_first=False)

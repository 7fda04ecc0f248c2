"""Who may do what: the caller itself, keys, teams with their quotas, and the log of changes.

Everybody may ask who they are and see their team's keys. All else here runs the installation and needs `admin`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.auth import require
from api.dependencies import (
    After,
    CurrentAdmin,
    CurrentDatabase,
    CurrentPrincipal,
    CurrentSettings,
    Limit,
)
from api.errors import BadRequest
from api.schemas.accounts import (
    AuditObject,
    CreateKey,
    CreateTeam,
    KeyObject,
    Me,
    NewKeyObject,
    Quotas,
    TeamObject,
    UpdateTeam,
)
from api.schemas.lists import ListOf
from jenga_core.service import audit
from jenga_core.service.accounts import keys, quotas, teams
from jenga_core.service.accounts.keys import Scope
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey, Team

router = APIRouter(prefix="/v1", tags=["accounts"])

OfTeam = Annotated[str | None, Query(max_length=64, description="Only this team's")]


@router.get("/me")
def retrieve_me(principal: CurrentPrincipal, database: CurrentDatabase) -> Me:
    """The caller's team, key and scopes, and what the team may use and uses."""
    with database.reading() as session:
        team = teams.get(session, principal.team_id)
        return Me.of(principal, team, quotas.usage(session, team.id))


@router.get("/keys")
def list_keys(
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    after: After = None,
    limit: Limit = 100,
    team_id: OfTeam = None,
) -> ListOf[KeyObject]:
    """Keys of the caller's team, newest first, revoked ones too. Another team's need `admin`."""
    wanted = team_id or principal.team_id
    if wanted != principal.team_id:
        require(principal, Scope.ADMIN)
    with database.reading() as session:
        return ListOf[KeyObject].of(keys.page(session, wanted, after=after, limit=limit), KeyObject.of)


@router.post("/keys")
def create_key(
    body: CreateKey, principal: CurrentAdmin, database: CurrentDatabase, settings: CurrentSettings
) -> NewKeyObject:
    """Make a key. The answer is the only place where its secret is ever shown."""
    with database.writing() as session:
        team = teams.get(session, body.team_id or principal.team_id)
        if body.expires_at is not None and body.expires_at <= session.scalars(select(database_now())).one():
            raise BadRequest(f"expires_at is {body.expires_at}, which is in the past", param="expires_at")
        secret = keys.create_key(
            session, team, body.name, pepper=settings.pepper, scopes=body.scopes, expires_at=body.expires_at
        )
        key = session.get_one(ApiKey, keys.key_id_of(secret))
        audit.record(
            session, principal, "key.create", key.id, name=body.name, team_id=team.id, scopes=list(body.scopes)
        )
        session.refresh(key)
        return NewKeyObject.of(key, secret=secret)


@router.delete("/keys/{key_id}")
def revoke_key(key_id: str, principal: CurrentAdmin, database: CurrentDatabase) -> KeyObject:
    """Revoke a key: from the next request on it opens nothing. It stays in the list."""
    with database.writing() as session:
        key = keys.revoke(session, key_id)
        audit.record(session, principal, "key.revoke", key.id, name=key.name, team_id=key.team_id)
        return KeyObject.of(key)


@router.get("/teams")
def list_teams(
    _principal: CurrentAdmin, database: CurrentDatabase, after: After = None, limit: Limit = 100
) -> ListOf[TeamObject]:
    """All teams, oldest first, with their quotas and what they use."""
    with database.reading() as session:
        page = teams.page(session, after=after, limit=limit)
        return ListOf[TeamObject].of(page, lambda team: TeamObject.of(team, quotas.usage(session, team.id)))


@router.post("/teams")
def create_team(body: CreateTeam, principal: CurrentAdmin, database: CurrentDatabase) -> TeamObject:
    """Make a team. It has no keys yet: POST /v1/keys with its `team_id`."""
    with database.writing() as session:
        team = teams.create_team(session, body.name)
        audit.record(session, principal, "team.create", team.id, name=team.name)
        return _with_quotas(session, team, body.quotas)


@router.post("/teams/{team_id}")
def update_team(team_id: str, body: UpdateTeam, principal: CurrentAdmin, database: CurrentDatabase) -> TeamObject:
    """Set a team's quotas. What is there stays; only new things are refused."""
    with database.writing() as session:
        team = teams.get(session, team_id, lock=True)
        audit.record(session, principal, "team.update", team.id, quotas=body.quotas.model_dump())
        return _with_quotas(session, team, body.quotas)


@router.get("/audit")
def list_audit(
    _principal: CurrentAdmin,
    database: CurrentDatabase,
    after: After = None,
    limit: Limit = 100,
    team_id: OfTeam = None,
    action: Annotated[str | None, Query(max_length=64, description="Only this, e.g. job.create")] = None,
    object_id: Annotated[str | None, Query(max_length=200, description="Only changes of this object")] = None,
) -> ListOf[AuditObject]:
    """Who did what, newest first."""
    with database.reading() as session:
        page = audit.page(session, after=after, limit=limit, team_id=team_id, action=action, object_id=object_id)
        return ListOf[AuditObject].of(page, AuditObject.of)


def _with_quotas(session: Session, team: Team, wanted: Quotas) -> TeamObject:
    team.max_storage_bytes, team.max_queued_jobs = wanted.storage_bytes, wanted.queued_jobs
    team.max_running_jobs, team.max_gpu_hours = wanted.running_jobs, wanted.gpu_hours
    session.flush()
    session.refresh(team)
    return TeamObject.of(team, quotas.usage(session, team.id))

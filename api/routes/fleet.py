"""Machines and devices, who holds them, who waits and why, and each team's share."""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import CurrentDatabase, CurrentPrincipal
from api.schemas.fleet import FleetObject
from jenga_core.service.accounts.keys import Scope
from jenga_core.service.fleet import repository

router = APIRouter(prefix="/v1/fleet", tags=["fleet"])


@router.get("")
def retrieve_fleet(principal: CurrentPrincipal, database: CurrentDatabase) -> FleetObject:
    """The fleet now. Jobs and names of other teams are left out, unless the key has `admin`."""
    with database.reading() as session:
        view = repository.fleet(session)
    return FleetObject.of(view, principal.team_id, see_all=principal.may(Scope.ADMIN))

"""How much device time each team has used lately: the currency of fair share.

    usage(t) = usage(t0) x 2^-((t - t0) / half-life) + what ended since, + what runs now

An hour on four devices is four hours. A running job counts from its first moment, and for at least a minute, so that a
burst of claims on an idle fleet does not all go to one team.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import DeviceLease, Job, TeamUsage

HALF_LIFE_SECONDS = 24 * 3600.0
"""After so long, use counts half."""

LEAST_SECONDS = 60.0
"""What a running job counts at least, per device."""


def charge(session: Session, team_id: str, seconds: float) -> None:
    """Add device time that a team has just used."""
    now = clock(session)
    if session.get(TeamUsage, team_id) is None:
        with suppress(IntegrityError), session.begin_nested():  # another job of the team may end at this moment
            session.add(TeamUsage(team_id=team_id, gpu_seconds=0.0, as_of=now))
    row = session.get_one(TeamUsage, team_id, with_for_update=True, populate_existing=True)
    row.gpu_seconds, row.as_of = decayed(row.gpu_seconds, now - row.as_of) + seconds, now
    session.flush()


def by_team(session: Session) -> Mapping[str, float]:
    """Decayed device seconds of every team that has some, those of running jobs included."""
    now = clock(session)
    used = {row.team_id: decayed(row.gpu_seconds, now - row.as_of) for row in session.scalars(select(TeamUsage))}
    running = select(Job.team_id, DeviceLease.since).join(Job, Job.id == DeviceLease.job_id)
    for team_id, since in session.execute(running):
        used[team_id] = used.get(team_id, 0.0) + max(now - since, LEAST_SECONDS)
    return used


def decayed(seconds: float, age_seconds: float) -> float:
    """What use of that age still counts."""
    return float(seconds * 2 ** (-max(age_seconds, 0.0) / HALF_LIFE_SECONDS))


def clock(session: Session) -> float:
    """The database's time."""
    return float(session.scalars(select(database_now())).one())

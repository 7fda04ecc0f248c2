"""API keys: `jenga_<id>_<secret><checksum>`.

The id finds the row, the CRC-32 tells a typo from a wrong key without asking the database, and only an HMAC of the
whole key is stored. The secret has 256 bits, so a slow hash would add nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.errors import AuthenticationError
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey, Team
from jenga_core.service.ids import new_id


@dataclass(frozen=True)
class Principal:
    """Who is asking: the team, and the key it used."""

    team_id: str
    key_id: str


def create_team(session: Session, name: str) -> Team:
    """The team of that name, made when missing."""
    team = session.scalars(select(Team).where(Team.name == name)).one_or_none()
    if team is None:
        team = Team(id=new_id("org-"), name=name, created_at=database_now())
        session.add(team)
        session.flush()
    return team


def create_key(session: Session, team: Team, name: str, *, pepper: bytes) -> str:
    """Make a key for the team and return it in clear text, for the only time."""
    key_id = secrets.token_hex(6)
    body = f"jenga_{key_id}_{secrets.token_hex(32)}"
    key = body + _checksum(body)
    session.add(
        ApiKey(
            id=key_id,
            team_id=team.id,
            name=name,
            digest=_digest(key, pepper),
            created_at=database_now(),
        )
    )
    session.flush()
    return key


def authenticate(session: Session, key: str, *, pepper: bytes) -> Principal:
    """The principal behind a key. Raises AuthenticationError."""
    parts = key.split("_")
    if len(parts) == 3 and parts[0] == "jenga" and _checksum(key[:-8]) == key[-8:]:
        row = session.get(ApiKey, parts[1])
        if row is not None and row.revoked_at is None and hmac.compare_digest(row.digest, _digest(key, pepper)):
            return Principal(team_id=row.team_id, key_id=row.id)
    raise AuthenticationError("Incorrect API key provided. The first key of an installation is in DATA_DIR/admin.key.")


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _digest(key: str, pepper: bytes) -> str:
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()

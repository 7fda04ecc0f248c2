"""API keys: `jenga_<id>_<secret><checksum>`.

The id finds the row, the CRC-32 tells a typo from a wrong key without asking the database, and only an HMAC of the
whole key is stored. The secret has 256 bits, so a slow hash would add nothing. The row is read for every request, so a
revoked or expired key opens nothing from that moment on.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, false, func, or_, select, update
from sqlalchemy.orm import Session

from jenga_core.errors import AuthenticationError, NotFoundError
from jenga_core.service import pagination
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey, Team
from jenga_core.service.pagination import Page

LAST_USED_SECONDS = 300.0
"""How old `last_used_at` may be before a request writes it again: reading should not cost a write."""


class Scope(StrEnum):
    """What a key may do; each scope includes those before it."""

    READ = "read"
    """See what the team has."""

    WRITE = "write"
    """Upload, start, stop and delete."""

    ADMIN = "admin"
    """Run the installation: teams, quotas, everybody's keys, the audit log."""


EVERY_SCOPE = tuple(Scope)


@dataclass(frozen=True)
class Principal:
    """Who is asking: the team, and the key it used."""

    team_id: str
    key_id: str
    key_name: str = ""
    scopes: tuple[Scope, ...] = EVERY_SCOPE
    request_id: str = ""
    """Of the request in which it asks."""

    noted: bool = True
    """That the key is in use was written down lately; else somebody should `touch` it."""

    def may(self, scope: Scope) -> bool:
        """Whether one of its scopes is, or includes, this one."""
        return any(EVERY_SCOPE.index(own) >= EVERY_SCOPE.index(scope) for own in self.scopes)


def create_key(
    session: Session,
    team: Team,
    name: str,
    *,
    pepper: bytes,
    scopes: Sequence[Scope] = EVERY_SCOPE,
    expires_at: float | None = None,
) -> str:
    """Make a key for the team and return it in clear text, for the only time. `expires_at`: seconds since 1970."""
    key_id = secrets.token_hex(6)
    body = f"jenga_{key_id}_{secrets.token_hex(32)}"
    key = body + _checksum(body)
    session.add(
        ApiKey(
            id=key_id,
            team_id=team.id,
            name=name,
            digest=_digest(key, pepper),
            scopes=[scope.value for scope in scopes],
            created_at=database_now(),
            expires_at=expires_at,
        )
    )
    session.flush()
    return key


def key_id_of(key: str) -> str:
    """The public part of a key."""
    return key.split("_")[1]


def authenticate(session: Session, key: str, *, pepper: bytes) -> Principal:
    """The principal behind a key. Raises AuthenticationError."""
    parts = key.split("_")
    if len(parts) == 3 and parts[0] == "jenga" and _checksum(key[:-8]) == key[-8:]:
        recent = func.coalesce(ApiKey.last_used_at > database_now() - LAST_USED_SECONDS, false())
        found = session.execute(select(ApiKey, recent).where(ApiKey.id == parts[1], _is_valid())).one_or_none()
        if found is not None and hmac.compare_digest(found[0].digest, _digest(key, pepper)):
            row, noted = found
            scopes = tuple(Scope(scope) for scope in row.scopes)
            return Principal(row.team_id, row.id, row.name, scopes, noted=bool(noted))
    raise AuthenticationError(
        "Incorrect API key provided, or one that was revoked or has expired. "
        "The first key of an installation is in DATA_DIR/admin.key."
    )


def is_known(session: Session, key: str, *, pepper: bytes) -> bool:
    """Whether it is a key of this installation, be it revoked or expired."""
    parts = key.split("_")
    row = session.get(ApiKey, parts[1]) if len(parts) == 3 else None
    return row is not None and hmac.compare_digest(row.digest, _digest(key, pepper))


def is_valid(session: Session, key_id: str) -> bool:
    """Whether the key opens something still: neither revoked nor expired."""
    return session.scalars(select(ApiKey.id).where(ApiKey.id == key_id, _is_valid())).one_or_none() is not None


def touch(session: Session, key_id: str) -> None:
    """Note that the key is in use."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=database_now()))


def page(session: Session, team_id: str | None, *, after: str | None, limit: int) -> Page[ApiKey]:
    """The keys of a team, or of all teams, newest first. Raises CursorError."""
    statement = select(ApiKey)
    if team_id is not None:
        statement = statement.where(ApiKey.team_id == team_id)
    return pagination.by_age(session, statement, ApiKey, after=after, limit=limit)


def revoke(session: Session, key_id: str) -> ApiKey:
    """From now on the key opens nothing. Revoking again changes nothing. Raises NotFoundError."""
    row = session.get(ApiKey, key_id)
    if row is None:
        raise NotFoundError(f"No such API key: {key_id!r}. Keys of a team: GET /v1/keys")
    if row.revoked_at is None:
        row.revoked_at = database_now()
        session.flush()
        session.refresh(row)
    return row


def _is_valid() -> ColumnElement[bool]:
    return ApiKey.revoked_at.is_(None) & or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > database_now())


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _digest(key: str, pepper: bytes) -> str:
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()

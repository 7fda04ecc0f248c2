"""What opens a door: the whole key, under the right pepper, while it is valid."""

from __future__ import annotations

import pytest

from jenga_core.errors import AuthenticationError, ConflictError, NotFoundError
from jenga_core.service.accounts import keys, teams
from jenga_core.service.accounts.keys import EVERY_SCOPE, Principal, Scope
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey
from jenga_core.service.db.session import Database

PEPPER = b"pepper"


@pytest.fixture
def key(database: Database) -> str:
    with database.writing() as session:
        team = teams.create_team(session, "blue")
        return keys.create_key(session, team, "ci", pepper=PEPPER, scopes=[Scope.READ])


def opens(database: Database, key: str, pepper: bytes = PEPPER) -> bool:
    with database.reading() as session:
        try:
            keys.authenticate(session, key, pepper=pepper)
        except AuthenticationError:
            return False
        return True


def test_the_principal_knows_its_team_name_and_scopes(database: Database, key: str) -> None:
    with database.reading() as session:
        principal = keys.authenticate(session, key, pepper=PEPPER)
        assert teams.get(session, principal.team_id).name == "blue"
    assert (principal.key_id, principal.key_name, principal.scopes) == (keys.key_id_of(key), "ci", (Scope.READ,))


def test_nothing_else_opens(database: Database, key: str) -> None:
    assert opens(database, key)
    assert not opens(database, key, b"another pepper")
    body, _ = key[:-8], key[-8:]
    last = "0" if body[-1] != "0" else "1"
    forged = body[:-1] + last
    for wrong in ("", "jenga", "jenga__", key[:-1], key + "0", key.upper(), forged + keys._checksum(forged), f" {key}"):
        assert not opens(database, wrong), wrong


def test_revoked_and_expired_keys_open_nothing(database: Database, key: str) -> None:
    for column, moment in (("expires_at", database_now() - 1), ("revoked_at", database_now() + 1000)):
        with database.writing() as session:
            setattr(session.get_one(ApiKey, keys.key_id_of(key)), column, moment)
        assert not opens(database, key)
        with database.reading() as session:
            assert not keys.is_valid(session, keys.key_id_of(key))
        with database.writing() as session:
            setattr(session.get_one(ApiKey, keys.key_id_of(key)), column, None)
        assert opens(database, key)
    with database.writing() as session:
        session.get_one(ApiKey, keys.key_id_of(key)).expires_at = database_now() + 100
    assert opens(database, key)


def test_use_is_to_be_noted_until_it_is(database: Database, key: str) -> None:
    def noted() -> bool:
        with database.reading() as session:
            return keys.authenticate(session, key, pepper=PEPPER).noted

    assert not noted()
    with database.writing() as session:
        keys.touch(session, keys.key_id_of(key))
    assert noted()


@pytest.mark.parametrize(
    ("own", "allowed"),
    [
        ((), ()),
        ((Scope.READ,), (Scope.READ,)),
        ((Scope.WRITE,), (Scope.READ, Scope.WRITE)),
        ((Scope.ADMIN,), EVERY_SCOPE),
        (EVERY_SCOPE, EVERY_SCOPE),
    ],
)
def test_a_scope_includes_those_before_it(own: tuple[Scope, ...], allowed: tuple[Scope, ...]) -> None:
    principal = Principal("org-1", "k", scopes=own)
    assert tuple(scope for scope in EVERY_SCOPE if principal.may(scope)) == allowed


def test_names_of_teams_are_taken_once(database: Database) -> None:
    with database.writing() as session:
        team = teams.create_team(session, "blue")
        assert teams.get_or_create_team(session, "blue") is team
        with pytest.raises(ConflictError, match="blue"):
            teams.create_team(session, "blue")
        with pytest.raises(NotFoundError):
            teams.get(session, "org-unknown")

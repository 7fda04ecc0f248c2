"""Transactions: committed at the edge, rolled back on an exception, patient with each other."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Team
from jenga_core.service.db.session import Database


def names(database: Database) -> list[str]:
    with database.reading() as session:
        return sorted(session.scalars(select(Team.name)))


def test_writing_commits_and_reading_does_not(database: Database) -> None:
    with database.writing() as session:
        create_team(session, "kept")
    with database.reading() as session:
        create_team(session, "dropped")
    assert names(database) == ["kept"]


def test_an_exception_rolls_back(database: Database) -> None:
    def fail() -> None:
        with database.writing() as session:
            create_team(session, "dropped")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(database) == []


def test_writers_that_read_first_wait_for_each_other(database: Database) -> None:
    """A deferred transaction on SQLite would fail at its first write when another writer came between."""

    def add(number: int) -> None:
        with database.writing() as session:
            session.scalars(select(Team)).all()
            create_team(session, f"team-{number}")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert names(database) == sorted(f"team-{number}" for number in range(8))


def test_the_databases_clock_moves_and_is_about_now(database: Database) -> None:
    with database.reading() as session:
        first = session.scalar(select(database_now()))
        assert first is not None
        assert abs(first - time.time()) < 60
        deadline = time.monotonic() + 10
        while session.scalar(select(database_now())) == first:  # within one transaction, too
            assert time.monotonic() < deadline


def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(IntegrityError), database.writing() as session:
        session.execute(text("INSERT INTO fine_tuned_models VALUES ('ft:x', 'no team', 'no job', 'b', 0)"))

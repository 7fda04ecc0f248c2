"""Fixtures that all tests share. A test with `database_url` or `broker_url` runs once on every kind there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.support import broker
from tests.support import database as databases

# A shared machine may stall for longer than any deadline, and a failure should come back in the next run.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The URL of a migrated database of a kind, made at the first call, dropped at the end of the run."""
    made: dict[str, str] = {}
    with ExitStack() as stack:

        def url_of(kind: str) -> str:
            if kind not in made:
                made[kind] = stack.enter_context(databases.migrated(kind, tmp_path_factory.mktemp(kind)))
            return made[kind]

        yield url_of


@pytest.fixture(params=databases.KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path, migrated_database: Callable[[str], str]) -> str:
    """A migrated, empty database of the test's own, on SQLite and on PostgreSQL (skipped where there is no server)."""
    if request.param == "postgresql":
        databases.require_postgres()
    return databases.own(migrated_database(request.param), tmp_path)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """A data folder of the test's own and its database. Doorbell messages go to memory unless a test says otherwise."""
    return Settings(data_dir=tmp_path / "data", database_url=database_url, broker_url="memory://")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """Sessions on the test's database."""
    opened = Database(settings.database)
    yield opened
    opened.dispose()


@pytest.fixture(scope="session")
def open_broker() -> Iterator[Callable[[str], str]]:
    """The URL of a broker of a kind, started at the first call, stopped at the end of the run."""
    opened: dict[str, str] = {}
    with ExitStack() as stack:

        def url_of(kind: str) -> str:
            if kind not in opened:
                opened[kind] = stack.enter_context(broker.open_broker(kind))
            return opened[kind]

        yield url_of


@pytest.fixture(params=broker.KINDS)
def broker_url(request: pytest.FixtureRequest, open_broker: Callable[[str], str]) -> str:
    """An empty broker: the embedded Valkey, and a Redis server (skipped where there is none)."""
    return broker.emptied(open_broker(request.param))

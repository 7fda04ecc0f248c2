"""Databases for tests: migrated once per test process; every test finds one that is empty and its own.

On SQLite a test gets a copy of the migrated file. On PostgreSQL, where making and dropping a database costs a second on
a slow disk, the process keeps one database and empties it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from jenga_core.service.db.models import Job
from jenga_core.service.settings import Settings
from migrations.upgrade import upgrade

KINDS = ("sqlite", "postgresql")
POSTGRES_URL = os.environ.get("JENGA_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
"""A role that may create databases. Tests never touch the database named here."""


def require_postgres() -> None:
    """Skip the test when the server cannot be reached, saying how to provide one."""
    try:
        psycopg.connect(POSTGRES_URL, connect_timeout=3).close()
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL at {POSTGRES_URL} (set JENGA_TEST_POSTGRES_URL): {error}")


@contextmanager
def new(kind: str, folder: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a database without tables; it is dropped when the block ends."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'jenga.db'}"
        return
    name = f"jenga_test_{os.getpid()}_{secrets.token_hex(4)}"
    with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
            url = make_url(POSTGRES_URL).set(drivername="postgresql+psycopg", database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def migrated(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a database at head, for `own` to start from."""
    with new(kind, folder) as url:
        upgrade(Settings(data_dir=folder, database_url=url))
        yield url


def own(migrated_url: str, folder: Path) -> str:
    """The URL of an empty database at head that nobody else is connected to."""
    if migrated_url.startswith("sqlite:///"):
        shutil.copyfile(migrated_url.removeprefix("sqlite:///"), folder / "jenga.db")
        return f"sqlite:///{folder / 'jenga.db'}"
    with psycopg.connect(migrated_url.replace("+psycopg", "")) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        for table in reversed(Job.metadata.sorted_tables):
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
    return migrated_url

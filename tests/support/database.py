"""Databases for tests: migrated once per process, copied for every test, dropped when the test ends.

`migrated` makes the template, `copy_of` gives a test its own database. On SQLite a copy is a file, on PostgreSQL it is
`CREATE DATABASE ... TEMPLATE`, both a fraction of what the migrations cost.
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

from jenga_core.service.db.migrate import upgrade
from jenga_core.service.settings import Settings

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
def empty(kind: str, folder: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh database without tables."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'jenga.db'}"
        return
    with _postgres_database() as url:
        yield url


@contextmanager
def migrated(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a database at head, to copy from; nobody may stay connected to it."""
    with empty(kind, folder) as url:
        upgrade(Settings(data_dir=folder, database_url=url))
        yield url


@contextmanager
def copy_of(template_url: str, folder: Path) -> Iterator[str]:
    """The URL of a test's own copy of a migrated database."""
    template = make_url(template_url).database
    assert template is not None
    if template_url.startswith("sqlite"):
        shutil.copyfile(template, folder / "jenga.db")
        yield f"sqlite:///{folder / 'jenga.db'}"
        return
    with _postgres_database(template) as url:
        yield url


@contextmanager
def _postgres_database(template: str = "template1") -> Iterator[str]:
    name = f"jenga_test_{os.getpid()}_{secrets.token_hex(4)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        connection.execute(create)
        try:
            url = make_url(POSTGRES_URL).set(drivername="postgresql+psycopg", database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(drop)

"""The migrations build exactly what the models say, in both directions, however many processes ask at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, create_engine, inspect
from sqlalchemy.exc import IntegrityError

from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from jenga_core.service.jobs.state import JobStage, JobState
from jenga_core.service.settings import Settings
from migrations.upgrade import alembic_config, upgrade
from tests.support import database as databases
from tests.support.jobs import seed, submit_job


@pytest.fixture(params=databases.KINDS)
def empty_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    if request.param == "postgresql":
        databases.require_postgres()
    with databases.new(request.param, tmp_path) as url:
        yield Settings(data_dir=tmp_path, database_url=url, broker_url="memory://")


def tables(settings: Settings) -> set[str]:
    engine = create_engine(settings.database)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def test_up_down_and_up_again(empty_settings: Settings) -> None:
    upgrade(empty_settings)
    assert tables(empty_settings) == set(Job.metadata.tables)
    command.downgrade(alembic_config(empty_settings.database), "base")
    assert tables(empty_settings) == set()
    upgrade(empty_settings)
    assert tables(empty_settings) == set(Job.metadata.tables)


def test_upgrading_a_database_at_head_keeps_its_rows(empty_settings: Settings) -> None:
    upgrade(empty_settings)
    database = Database(empty_settings.database)
    job_id = submit_job(database, seed(database, empty_settings))
    upgrade(empty_settings)
    with database.reading() as session:
        assert session.get_one(Job, job_id).state == JobState.QUEUED
    database.dispose()


def test_the_models_ask_for_nothing_that_the_migrations_do_not_make(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Job.metadata) == []


def test_alembic_check_agrees(database_url: str) -> None:
    command.check(alembic_config(database_url))


@pytest.mark.parametrize("column", ["state", "stage"])
def test_the_database_knows_the_same_words_as_the_enums(database: Database, settings: Settings, column: str) -> None:
    """Autogenerate does not compare CHECK constraints, so this does."""
    job_id = submit_job(database, seed(database, settings))
    words = JobState if column == "state" else JobStage
    for word in words:
        with database.writing() as session:
            setattr(session.get_one(Job, job_id), column, word)
    with pytest.raises(IntegrityError), database.writing() as session:
        setattr(session.get_one(Job, job_id), column, "lost")
    assert any(isinstance(each, CheckConstraint) for each in Job.__table__.constraints)


def test_processes_that_migrate_at_once_do_not_collide(empty_settings: Settings) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(upgrade, empty_settings) for _ in range(4)]:
            done.result()
    assert tables(empty_settings) == set(Job.metadata.tables)

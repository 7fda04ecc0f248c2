"""Lists walk an index: none of them reads, or sorts, all that a team has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from jenga_core.service import audit
from jenga_core.service.db.session import Database
from jenga_core.service.files import repository as files
from jenga_core.service.jobs import repository as jobs
from jenga_core.service.metrics import details
from jenga_core.service.models import predictors
from jenga_core.service.settings import Settings
from tests.support.jobs import Seed, seed, submit_job


@contextmanager
def selected(session: Session) -> Iterator[list[tuple[str, Any]]]:
    """SELECT statements of the block, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def plan(session: Session, statement: str, parameters: Any) -> str:
    """How the database would run it, were the tables large."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(str(row[3]) for row in rows)
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    connection.execute(text("SET LOCAL enable_sort = off"))
    connection.execute(text("SET LOCAL enable_bitmapscan = off"))
    rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
    return "\n".join(str(row[0]) for row in rows)


def check(session: Session, statements: list[tuple[str, Any]], subtests: pytest.Subtests) -> None:
    """Fail for a statement that reads a whole table or sorts."""
    assert statements
    for statement, parameters in statements:
        told = plan(session, statement, parameters)
        with subtests.test(statement=statement, plan=told):
            assert "Seq Scan" not in told
            assert not re.search(r"^SCAN \w+$", told, re.MULTILINE)
            assert "TEMP B-TREE" not in told
            assert "Sort" not in told


def test_pages_walk_an_index(database: Database, settings: Settings, subtests: pytest.Subtests) -> None:
    seeded: Seed = seed(database, settings)
    made = [submit_job(database, seeded) for _ in range(3)]
    team = seeded.team_id
    with database.reading() as session, selected(session) as statements:
        for after in (None, made[1]):
            jobs.page(session, team, after=after, limit=2)
        jobs.page(session, team, after=None, limit=2, metadata={"a": "b"})
        job = jobs.get(session, team, made[0])
        jobs.events(session, job, after=None, limit=2)
        jobs.events_since(session, job.id, 0, limit=2)
        for after in (None, seeded.training_file):
            files.page(session, team, after=after, limit=2)
            files.page(session, team, after=after, limit=2, newest_first=False)
        predictors.page(session, team, after=None, limit=2)
        audit.page(session, after=None, limit=2)
        audit.page(session, after=None, limit=2, team_id=team)
    with database.reading() as session:
        check(session, statements, subtests)


def test_what_is_shown_beside_jobs_is_found_by_key(
    database: Database, settings: Settings, subtests: pytest.Subtests
) -> None:
    seeded = seed(database, settings)
    made = [submit_job(database, seeded) for _ in range(3)]
    with database.reading() as session:
        found = [jobs.get(session, seeded.team_id, job_id) for job_id in made]
        with selected(session) as statements:
            details.of_jobs(session, found)
        own = [each for each in statements if "job_requests" in each[0] or "job_memory" in each[0]]
        own += [each for each in statements if "job_metrics" in each[0]]
        assert len(own) == 3
        for statement, parameters in own:
            told = plan(session, statement, parameters)
            with subtests.test(statement=statement, plan=told):
                assert "SCAN job" not in told
                assert "Seq Scan" not in told


def test_a_plan_that_reads_everything_would_be_found(database: Database, settings: Settings) -> None:
    seed(database, settings)
    with database.reading() as session:
        told = plan(session, "SELECT filename FROM files ORDER BY filename", ())
    assert "SCAN files" in told or "Sort" in told

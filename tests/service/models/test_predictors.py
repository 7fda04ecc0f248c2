"""Rows of predictors: one per folder, written by the job that made them, found by the team's others."""

from __future__ import annotations

from sqlalchemy import select

from jenga_core.service.db.models import Job, PredictorEntry
from jenga_core.service.db.session import Database
from jenga_core.service.models import predictors
from jenga_core.service.settings import Settings
from tests.support.jobs import Seed, seed, submit_job


def record(database: Database, seeded: Seed, name: str, *, made: bool, parameters: int) -> str:
    job_id = submit_job(database, seeded)
    with database.writing() as session:
        job = session.get_one(Job, job_id)
        predictors.record(session, job, name, made=made, settings={"layers": [1]}, report={"parameters": parameters})
    return job_id


def rows(database: Database) -> list[tuple[str, str, int]]:
    with database.reading() as session:
        found = session.scalars(select(PredictorEntry).order_by(PredictorEntry.folder))
        return [(row.folder.rpartition("/")[2], row.job_id, row.report["parameters"]) for row in found]


def test_a_row_is_written_once_and_again_only_when_they_are_made_anew(database: Database, settings: Settings) -> None:
    seeded = seed(database, settings)
    first = record(database, seeded, "aa", made=True, parameters=1)
    assert rows(database) == [("aa", first, 1)]
    record(database, seeded, "aa", made=False, parameters=1)
    assert rows(database) == [("aa", first, 1)]
    again = record(database, seeded, "aa", made=True, parameters=2)
    assert rows(database) == [("aa", again, 2)]
    found = record(database, seeded, "bb", made=False, parameters=3)  # whoever made them was cut off before the row
    assert rows(database) == [("aa", again, 2), ("bb", found, 3)]


def test_the_folder_is_the_team_s_and_the_model_s(database: Database, settings: Settings) -> None:
    ours, theirs = seed(database, settings), seed(database, settings)
    record(database, ours, "aa", made=True, parameters=1)
    record(database, theirs, "aa", made=True, parameters=1)
    with database.reading() as session:
        for seeded in (ours, theirs):
            (row,) = predictors.page(session, seeded.team_id, after=None, limit=10).rows
            assert settings.data_dir / row.folder == predictors.folder_of(settings, seeded.team_id, "0" * 64) / "aa"
            assert row.base_model == seeded.model

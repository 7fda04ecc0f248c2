"""The made-up rows of the screenshots do not contradict each other, nor the estimate that stands beside them."""

from __future__ import annotations

from statistics import median

import pytest
from sqlalchemy import select

from jenga_core.config import JengaConfig
from jenga_core.memory.estimate import estimate
from jenga_core.memory.model_shape import ModelShape
from jenga_core.service.accounts.keys import create_key, key_id_of
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.models import Job, JobMemory, JobMetric, JobSelection
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.web import base_models, gallery

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def filled(settings: Settings, database: Database) -> Database:
    """A database with the gallery in it."""
    with database.writing() as session:
        team = create_team(session, "legal")
        key = create_key(session, team, "ada", pepper=settings.pepper)
        gallery.fill(session, settings, team, key_id_of(key))
    return database


def test_numbers_of_a_job_agree(filled: Database) -> None:
    shape = ModelShape.from_config(base_models.LLAMA_3_8B)
    with filled.reading() as session:
        trained = session.scalars(select(Job).where(Job.step > 0)).all()
        assert len(trained) == 8
        for job in trained:
            metrics = session.scalars(
                select(JobMetric).where(JobMetric.job_id == job.id).order_by(JobMetric.step)
            ).all()
            speed = median(row.tokens_per_second for row in metrics if row.tokens_per_second)
            assert job.trained_tokens is not None
            lasted = metrics[-1].created_at - metrics[0].created_at
            assert job.trained_tokens / speed == pytest.approx(lasted, rel=0.02), job.suffix
            if job.finished_at:
                assert metrics[-1].created_at < job.finished_at < job.created_at + 2 * lasted + 1000
            if job.report and job.state == "succeeded":
                before, after = job.report["held_out_before"]["loss"], job.report["held_out_after"]["loss"]
                assert (before, after) == (metrics[0].valid_loss, metrics[-1].valid_loss)
                selections = session.scalars(select(JobSelection).where(JobSelection.job_id == job.id)).all()
                assert all(row.kept_blocks["entry_layer"] == job.report["entry_layer"] for row in selections)
            memory = session.get_one(JobMemory, (job.id, "finetune"))
            predicted = estimate(shape, JengaConfig.parse(job.config))
            assert predicted.low_bytes < memory.peak_bytes < predicted.high_bytes, job.suffix


def test_what_ran_out_of_memory_was_expected_to_fit(filled: Database) -> None:
    with filled.reading() as session:
        (failed,) = session.scalars(select(Job).where(Job.state == "failed"))
        predicted = estimate(ModelShape.from_config(base_models.LLAMA_3_8B), JengaConfig.parse(failed.config))
        assert failed.error is not None
        said = f"predicted {predicted.expected_bytes / 2**30:.1f} GiB ({predicted.low_bytes / 2**30:.1f} to "
        assert said in failed.error["message"]
        assert predicted.expected_bytes < gallery.GPU_BYTES < predicted.high_bytes
        assert failed.step == 0

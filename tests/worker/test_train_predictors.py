"""Which predictors a job uses: stored, new or none; and what it tells about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning.data import Encoded
from jenga_core.prediction import store
from tests.prediction.conftest import sequences
from tests.support.tiny import tiny_model, tiny_tokenizer
from worker.protocol import Message, TrainerSpec, message_adapter
from worker.stages import prepare, train_predictors
from worker.training_job import Reporter, Stopped, TrainingJob

MakeJob = Callable[..., TrainingJob]
PREDICTOR = {"hidden": 16, "head_size": 4, "steps": 5}


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[MakeJob]:
    """A job of the tiny model that has been prepared; its messages go to `said`."""
    jobs: list[TrainingJob] = []

    def make(*, count: int = 4, predictor: dict[str, Any] | None = None, **selection: Any) -> TrainingJob:
        config = JengaConfig.preset(
            "jenga", selection={"block_tokens": 8, **selection}, predictor={**PREDICTOR, **(predictor or {})}
        )
        spec = TrainerSpec(
            job_id="ftjob-test",
            attempt=1,
            model_name="tiny",
            model_folder=tmp_path,
            fingerprint="0" * 64,
            predictors_folder=tmp_path / "predictors",
            training_path=tmp_path,
            validation_path=None,
            config=config,
            hyperparameters={},
            seed=0,
        )
        folder = tmp_path / f"job-{len(jobs)}"
        folder.mkdir()
        writer = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
        job = TrainingJob(spec=spec, folder=folder, reporter=Reporter(writer), device=torch.device("cpu"))
        job.tokenizer = tiny_tokenizer()
        job.training = Encoded(sequences(count), count, 0, 0, 0, 0)  # type: ignore[arg-type]  # a list serves
        job.model = tiny_model().requires_grad_(False)  # type: ignore[assignment]  # an adapter plays no part here
        job.handle = apply_jenga(job.model, prepare.without_predictors(config))
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.reporter.close()


def said(job: TrainingJob) -> list[Message]:
    return [message_adapter.validate_json(line) for line in (job.folder / "said").read_bytes().splitlines()]


def score_after(job: TrainingJob) -> str:
    assert job.handle is not None
    before = job.handle.score
    train_predictors.run(job)
    assert before in ("exact", "random")
    return job.handle.score


def test_on_a_cpu_auto_trains_none_but_takes_stored_ones(make_job: MakeJob) -> None:
    willing = {"min_recall": 0.0}
    first = make_job(predictor=willing)
    assert score_after(first) == "exact"
    assert [message.kind for message in said(first)] == ["event"]
    assert score_after(make_job(score="predicted")) == "predicted"
    second = make_job(predictor=willing)
    assert score_after(second) == "predicted"
    assert second.predictors is not None


def test_auto_falls_back_on_exact_scores_where_recall_is_low(make_job: MakeJob) -> None:
    asked = make_job(score="predicted", predictor={"min_recall": 1.0})
    assert score_after(asked) == "predicted"
    assert "used all the same, as asked" in asked.warnings[0]
    automatic = make_job(predictor={"min_recall": 1.0})
    assert score_after(automatic) == "exact"
    assert automatic.predictors is None
    assert "block scores are exact" in automatic.warnings[0]


@pytest.mark.parametrize("selection", [{"score": "random"}, {"score": "exact"}])
def test_other_scores_need_none(make_job: MakeJob, selection: dict[str, Any]) -> None:
    job = make_job(**selection)
    assert score_after(job) == selection["score"]
    assert said(job) == []


def test_other_settings_find_none(make_job: MakeJob) -> None:
    assert score_after(make_job(score="predicted")) == "predicted"
    assert score_after(make_job(keep_fraction=0.3, predictor={"min_recall": 0.0})) == "exact"


def test_damaged_ones_are_told_and_replaced(make_job: MakeJob) -> None:
    first = make_job(score="predicted")
    train_predictors.run(first)
    (folder,) = first.spec.predictors_folder.iterdir()
    (folder / store.WEIGHTS).write_bytes(b"gone")
    second = make_job(score="predicted")
    train_predictors.run(second)
    assert "Stored predictors are not used" in second.warnings[0]
    assert [message.reused for message in said(second) if message.kind == "predictor"] == [False]
    assert (folder / store.WEIGHTS).stat().st_size > 100


def test_a_stop_ends_the_training_and_leaves_nothing_behind(make_job: MakeJob) -> None:
    job = make_job(score="predicted")
    job.stop_requested = True
    with pytest.raises(Stopped):
        train_predictors.run(job)
    assert not job.spec.predictors_folder.exists()


def test_a_single_sequence_is_too_little(make_job: MakeJob) -> None:
    job = make_job(count=1)
    job.device = torch.device("cuda")  # where auto would train
    assert score_after(job) == "exact"
    assert "single sequence" in job.warnings[0]


def test_predictors_may_stay_in_the_job_s_own_folder(make_job: MakeJob) -> None:
    """Where `jenga train` wants them."""
    job = make_job(score="predicted")
    job.spec = job.spec.model_copy(update={"predictors_folder": job.folder / "predictors"})
    assert score_after(job) == "predicted"
    assert [path.is_dir() for path in (job.folder / "predictors").iterdir()] == [True]

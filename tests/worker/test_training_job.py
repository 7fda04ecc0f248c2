"""What the stages tell the supervisor."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from jenga_core import JengaConfig
from jenga_core.errors import JengaError
from worker.protocol import EventMessage, TrainerSpec, message_adapter
from worker.training_job import Reporter, TrainingJob
from worker.watcher import JobWatcher


def test_warnings_are_told_and_kept_and_a_diverged_loss_ends_the_job(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    spec = TrainerSpec(
        job_id="ftjob-test",
        attempt=1,
        model_name="tiny",
        model_folder=tmp_path,
        fingerprint="0" * 64,
        predictors_folder=tmp_path,
        training_path=tmp_path,
        validation_path=None,
        config=JengaConfig.preset("jenga"),
        hyperparameters={},
        seed=0,
    )
    job = TrainingJob(spec=spec, folder=tmp_path, reporter=Reporter(writer), device=torch.device("cpu"))
    job.warn("two rows were cut")
    with os.fdopen(reader, "rb") as lines:
        message = message_adapter.validate_json(lines.readline())
    assert message == EventMessage(message="two rows were cut", level="warn")
    assert job.warnings == ["two rows were cut"]

    watcher = JobWatcher(job, selections_every_steps=1)
    with pytest.raises(JengaError, match="the loss is nan at step 3; lower learning_rate") as raised:
        watcher.step_done(3, train_loss=math.nan, learning_rate=1.0, tokens_per_second=1.0, trained_tokens=1)
    assert raised.value.code == "loss_diverged"
    job.reporter.close()

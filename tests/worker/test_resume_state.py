"""What a checkpoint says of the memory of the first batch, and when it is measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jenga_core.config import JengaConfig
from jenga_core.finetuning.checkpoints import STATE_FOLDER
from jenga_core.finetuning.dense_reference import DenseReference
from jenga_core.patching.apply import apply_jenga
from tests.support.tiny import tiny_model
from worker import resume_state
from worker.protocol import TrainerSpec
from worker.training_job import TrainingJob

DENSE = DenseReference(activation_bytes=9, states_bytes=1, peak_bytes=10, measured_tokens=64, tokens=64)


def job(folder: Path, **config: Any) -> TrainingJob:
    spec = TrainerSpec.model_construct(config=JengaConfig.parse(config))
    made = TrainingJob(spec=spec, folder=folder, reporter=None, device=torch.device("cpu"))  # type: ignore[arg-type]
    made.handle = apply_jenga(tiny_model(), spec.config)
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / STATE_FOLDER).mkdir()
    saved = job(tmp_path)
    saved.dense, saved.activation_bytes = DENSE, 3
    resume_state.save(saved, tmp_path / STATE_FOLDER)
    return tmp_path


def test_what_was_measured_is_not_measured_again(checkpoint: Path) -> None:
    resumed = job(checkpoint)
    resume_state.load_calibration(resumed, checkpoint)
    assert (resumed.dense, resumed.activation_bytes) == (DENSE, 3)


def test_under_other_settings_it_is(checkpoint: Path) -> None:
    """A job that ran out of memory goes on with less."""
    resumed = job(checkpoint, recompute="full")
    resume_state.load_calibration(resumed, checkpoint)
    assert (resumed.dense, resumed.activation_bytes) == (None, None)


def test_a_checkpoint_that_does_not_tell_its_settings_is_taken_all_the_same(checkpoint: Path) -> None:
    """One of an earlier version, whose numbers mean something else."""
    path = checkpoint / STATE_FOLDER / resume_state.CALIBRATION
    old = json.loads(path.read_text())
    path.write_text(
        json.dumps({"dense": {"activation_bytes": 9}, **{name: old[name] for name in ("held_out_before", "warnings")}})
    )
    resumed = job(checkpoint)
    resume_state.load_calibration(resumed, checkpoint)
    assert resumed.dense is None

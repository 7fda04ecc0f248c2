"""Whether a run may begin in a folder, or go on there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cli import run_folder
from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError


def spec(folder: Path, *, seed: int = 42, n_epochs: int = 3, **jenga: Any) -> dict[str, Any]:
    """As `jenga train` writes it."""
    return {
        "model_name": "tiny",
        "fingerprint": "0" * 64,
        "predictors_folder": str(folder / "predictors"),
        "training_path": str(folder.parent / "rows.jsonl"),
        "validation_path": None,
        "config": JengaConfig.parse({"max_steps": 4, **jenga}).model_dump(mode="json"),
        "hyperparameters": {"n_epochs": n_epochs},
        "seed": seed,
    }


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run that has begun, and left nothing yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    run_folder.begin(folder, spec(folder))
    return folder


def save(folder: Path, step: int) -> None:
    """A checkpoint, as far as its name goes."""
    (folder / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)


def end(folder: Path) -> None:
    """What a run has left that came to its end, a second after it began."""
    save(folder, 4)
    (folder / "output" / "adapter").mkdir(parents=True)
    metrics = folder / "output" / "metrics.csv"
    metrics.write_text("step\n")
    began = (folder / "spec.json").stat().st_mtime
    os.utime(metrics, (began + 1, began + 1))


def test_a_run_that_left_nothing_makes_room_for_another(begun: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to go on from; leave --resume out"):
        run_folder.go_on(begun, spec(begun, keep_fraction=0.9))
    run_folder.begin(begun, spec(begun, keep_fraction=0.9))
    assert '"keep_fraction": 0.9' in (begun / "spec.json").read_text()


def test_a_run_that_left_something_is_not_run_over(begun: Path) -> None:
    save(begun, 2)
    with pytest.raises(ConfigError, match="holds a run already; go on with --resume"):
        run_folder.begin(begun, spec(begun))


def test_a_run_goes_on_with_the_settings_that_it_had(begun: Path) -> None:
    save(begun, 2)
    with pytest.raises(ConfigError) as refused:
        run_folder.go_on(begun, spec(begun, seed=1, keep_fraction=0.9, context_length_tokens=256, max_steps=9))
    assert refused.value.message.splitlines()[1:] == [
        "  seed: 42 then, 1 now",
        "  jenga.context_length_tokens: 2048 then, 256 now",
        "  jenga.selection.keep_fraction: 0.4 then, 0.9 now",
    ]
    assert run_folder.go_on(begun, spec(begun))


def test_a_run_may_become_longer_and_save_more_often(begun: Path) -> None:
    save(begun, 2)
    assert run_folder.go_on(begun, spec(begun, max_steps=9, checkpoint_steps=1, n_epochs=5))
    assert '"max_steps": 9' in (begun / "spec.json").read_text()


def test_a_run_and_its_files_may_be_moved_together(begun: Path) -> None:
    save(begun, 2)
    moved = begun.parent.rename(begun.parent.with_name("elsewhere")) / "run"
    assert run_folder.go_on(moved, spec(moved))


def test_a_finished_run_has_nothing_left_to_do(begun: Path) -> None:
    end(begun)
    assert not run_folder.go_on(begun, spec(begun))
    assert not run_folder.go_on(begun, spec(begun, max_steps=3))
    with pytest.raises(ConfigError, match="seed: 42 then, 1 now"):
        run_folder.go_on(begun, spec(begun, seed=1))


def test_a_finished_run_that_became_longer_is_finished_no_more(begun: Path) -> None:
    end(begun)
    assert run_folder.go_on(begun, spec(begun, max_steps=9))
    later = (begun / "output" / "metrics.csv").stat().st_mtime + 1
    os.utime(begun / "spec.json", (later, later))
    assert run_folder.go_on(begun, spec(begun, max_steps=9))  # interrupted: the adapter is of the shorter run


def test_a_run_whose_settings_are_lost_goes_on(begun: Path) -> None:
    end(begun)
    (begun / "spec.json").unlink()
    assert run_folder.go_on(begun, spec(begun, keep_fraction=0.9))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        run_folder.held(tmp_path / "run"),
        pytest.raises(ConfigError, match="another `jenga train` is at work"),
        run_folder.held(tmp_path / "run"),
    ):
        pass
    with run_folder.held(tmp_path / "run"):
        pass

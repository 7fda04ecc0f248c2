"""`jenga train CONFIG`: the config's errors, and real runs of a tiny model without a service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from cli.train import read
from jenga_core.errors import ConfigError
from tests.support.tiny import save_tiny_model

SECONDS = 150
CONFIG = """
model = "tiny"
training_file = "rows.jsonl"
validation_file = "rows.jsonl"
output = "run"

[jenga]
max_steps = {steps}
checkpoint_steps = 50
context_length_tokens = 128
selection = {{ block_tokens = 16 }}
"""


def config(folder: Path, *, steps: int = 2) -> Path:
    """A config beside its rows and model."""
    rows = (json.dumps({"text": f"{number} of many documents " * 20}) + "\n" for number in range(4))
    (folder / "rows.jsonl").write_text("".join(rows))
    save_tiny_model(folder / "tiny")
    path = folder / "config.toml"
    path.write_text(CONFIG.format(steps=steps))
    return path


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`jenga train`, without a terminal."""
    argv = [sys.executable, "-m", "cli.main", "train", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = ", "is not TOML"),
        ('model = "m"', "training_file: Field required"),
        ('model = "m"\ntraining_file = "t"\nouput = "o"', "ouput: Extra inputs"),
        ('model = "m"\ntraining_file = "t"\n[jenga]\nkeep_fraction = 2', "keep_fraction"),
    ],
)
def test_what_is_wrong_in_the_config_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read(path)


def test_files_that_are_not_there_are_named_before_anything_starts(tmp_path: Path) -> None:
    path = config(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    refused = train(str(path))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"training_file: there is no file {tmp_path / 'rows.jsonl'}" in refused.stderr
    (tmp_path / "tiny" / "config.json").unlink()
    assert "model 'tiny' is no folder with a config.json" in train(str(path), "--data-dir", str(tmp_path)).stderr


def test_a_run_leaves_an_adapter_and_is_not_run_over(tmp_path: Path) -> None:
    path = config(tmp_path)
    done = train(str(path))
    assert done.returncode == 0, done.stderr
    assert "Step 2/2: training loss=" in done.stdout
    assert "Step 0/2: validation loss=" in done.stdout and "Step 2/2: validation loss=" in done.stdout
    assert "held-out loss" in done.stdout
    assert (tmp_path / "run" / "output" / "adapter" / "adapter_config.json").exists()
    again = train(str(path))
    assert again.returncode == 1
    assert "holds a run already; go on with --resume" in again.stderr
    resumed = train(str(path), "--resume")
    assert (resumed.returncode, resumed.stdout) == (0, "")
    assert f"Already finished: {tmp_path / 'run' / 'output' / 'adapter'}" in resumed.stderr


def test_what_the_trainer_refuses_is_the_error(tmp_path: Path) -> None:
    path = config(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": 5}\n')
    failed = train(str(path), "--json")
    assert failed.returncode == 1
    assert "Row 1: 'text' must be a string" in failed.stderr
    assert json.loads(failed.stdout.splitlines()[-1])["kind"] == "error"
    (tmp_path / "rows.jsonl").write_text('{"text": "long enough"}\n')
    assert train(str(path)).returncode == 0  # what failed before its first checkpoint is not in the way


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path) -> None:
    path = config(tmp_path, steps=2000)
    environment = {**os.environ, "TERM": "xterm-256color"}
    argv = ["-m", "cli.main", "train", str(path)]
    run = pexpect.spawn(sys.executable, argv, env=environment, encoding="utf-8", timeout=SECONDS, dimensions=(24, 100))
    run.expect("/2000 ")
    run.expect("Checkpoint created at step 50")
    run.sendintr()
    run.expect("Saved as .*checkpoint-")
    run.expect("--resume")
    run.expect(pexpect.EOF)
    run.close()
    assert run.exitstatus == 130
    path.write_text(path.read_text().replace("2000", "300"))
    resumed = train(str(path), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from checkpoint-" in resumed.stdout

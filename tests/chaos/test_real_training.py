"""Real training: killed at random steps the loss curve is that of a run left in peace; a full disk leaves no half."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jenga_core.config import JengaConfig
from jenga_core.finetuning import checkpoints
from jenga_core.service.jobs.state import JobState
from tests.chaos.stack import BACKENDS, Stack, kill, running
from tests.support.processes import until
from tests.support.tiny import save_tiny_model
from tests.worker.test_trainer_process import Run, make_spec
from worker.protocol import EXIT_USER_ERROR

STEPS = 40
KILLS = 3

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_that_is_killed_at_random_steps_has_the_curve_of_one_that_is_not(backend: str, tmp_path: Path) -> None:
    chance = random.Random(7)
    with running(backend, tmp_path, real=True, hosts={"h1": "1a"}) as stack:
        peaceful = submit_real(stack)
        until(lambda: stack.ended([peaceful]), 300)
        curve = stack.curve(peaceful)
        assert list(curve) == list(range(1, STEPS + 1))
        killed = submit_real(stack)
        last = 0
        for number in range(KILLS):
            target = min(last + chance.randint(2, 10), STEPS - 2)
            until(lambda target=target: stack.job(killed).step >= target, 180)
            last = stack.job(killed).step
            if number == 1:
                stack.workers["h1"].kill()
                stack.mend()
            else:
                for pid in stack.trainers():
                    kill(pid)
            until(lambda: not stack.trainers(), 30)
        until(lambda: stack.ended([killed]), 300)
        assert stack.job(killed).state == JobState.SUCCEEDED, stack.job(killed).error
        assert stack.job(killed).attempt > 1
        assert stack.curve(killed) == curve
        stack.verify([peaceful, killed], curve={step: loss for step, loss in curve.items() if loss is not None})


def submit_real(stack: Stack) -> str:
    """Random selection, so that the generator's state must come back too."""
    assert stack.seeded is not None
    folder = stack.settings.folder("models", stack.seeded.model)
    if not list(folder.glob("*.safetensors")):
        save_tiny_model(folder)
        text = '{"text": "%s"}\n' % ("the quick brown fox jumps over the lazy dog. " * 60)
        (stack.settings.folder("files") / stack.seeded.training_file).write_text(text)
    config = JengaConfig.parse(
        {
            "context_length_tokens": 64,
            "max_steps": STEPS,
            "checkpoint_steps": 3,
            "learning_rate": 0.01,
            "selection": {"block_tokens": 8, "score": "random"},
        }
    )
    return stack.submit(config=config.model_dump(mode="json"), seed=5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB more than a checkpoint leaves free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = checkpoints.SPARE_BYTES // 2**20 + 24
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_the_job_with_a_reason_and_nothing_half_written(
    small_disk: Path, tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "model")
    run = Run(small_disk / "job", make_spec(tmp_path, model, max_steps=5000, checkpoint_steps=20))
    run.read(until=lambda message: message.kind == "checkpoint")
    taken = shutil.disk_usage(small_disk).free - checkpoints.SPARE_BYTES
    (small_disk / "somebody else's").write_bytes(bytes(taken))
    assert run.wait() == EXIT_USER_ERROR, run.log()
    (error,) = run.of_kind("error")
    assert error.code == "disk_full"
    assert "free some space" in error.message
    saved = checkpoints.whole_or_not(small_disk / "job" / "checkpoints")
    assert saved
    for checkpoint in saved:
        checkpoints.verify(checkpoint)
    assert {path.name for path in (small_disk / "job" / "checkpoints").iterdir()} == {path.name for path in saved}
    assert saved[0].name == run.of_kind("checkpoint")[-1].folder

"""The real trainer, as the supervisor starts it: a process, a spec, a pipe. On a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from peft import PeftModel

from jenga_core import JengaConfig
from jenga_core.service.jobs.state import JobStage
from tests.support.tiny import save_tiny_model, tiny_model
from worker import watchdog
from worker.protocol import (
    EVENTS_FD_VARIABLE,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    FINISH_SIGNAL,
    Message,
    TrainerSpec,
    message_adapter,
)
from worker.watchdog import LEASE_FD_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 240
RANDOM = {"block_tokens": 8, "score": "random"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class Run:
    """One trainer process and what it said."""

    def __init__(self, folder: Path, spec: TrainerSpec, *, lease: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(spec.model_dump_json())
        reader, writer = os.pipe()
        lease_reader, self.lease = os.pipe()
        watched = {LEASE_FD_VARIABLE: str(lease_reader)} if lease else {}
        self.folder = folder
        self.messages: list[Message] = []
        self._lines = os.fdopen(reader, "rb")
        with (folder / "stderr.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.trainer", "--job-dir", str(folder)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writer, lease_reader],
                env={
                    **os.environ,
                    **watched,
                    EVENTS_FD_VARIABLE: str(writer),
                    "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1",
                },
            )
        os.close(writer)
        os.close(lease_reader)

    def read(self, until: Callable[[Message], bool] | None = None) -> None:
        """Messages up to one for which `until` holds, or to the end."""
        for line in self._lines:
            message = message_adapter.validate_json(line)
            self.messages.append(message)
            if until is not None and until(message):
                return

    def wait(self) -> int:
        self.read()
        self._lines.close()
        return self.process.wait(DEADLINE_SECONDS)

    def of_kind(self, kind: str) -> list[Any]:
        return [message for message in self.messages if message.kind == kind]

    def log(self) -> str:
        return (self.folder / "stderr.log").read_text()


def trained(run: Run) -> dict[int, float]:
    """Training loss by step."""
    return {step.step: step.train_loss for step in run.of_kind("step") if step.train_loss is not None}


def make_spec(
    folder: Path, model_folder: Path, *, text: str = "the quick brown fox. " * 60, **jenga: Any
) -> TrainerSpec:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (folder / "valid.jsonl").write_text(json.dumps({"text": "jumps over the lazy dog. " * 20}) + "\n")
    given = {"context_length_tokens": 64, "max_steps": 6, "checkpoint_steps": 2, "learning_rate": 0.01}
    return TrainerSpec(
        job_id="ftjob-test",
        attempt=1,
        model_name="tiny",
        model_folder=model_folder,
        fingerprint="0" * 64,
        predictors_folder=folder / "predictors",
        training_path=folder / "train.jsonl",
        validation_path=folder / "valid.jsonl",
        config=JengaConfig.parse({**given, "selection": {"block_tokens": 8}, **jenga}),
        hyperparameters={},
        seed=1,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Run:
    """A job that ran to its end. Random scores, so that a resumed run must bring the generator's state back too."""
    folder = tmp_path_factory.mktemp("finished")
    run = Run(folder / "job", make_spec(folder, model_folder, selection=RANDOM))
    assert run.wait() == EXIT_OK, run.log()
    return run


def test_a_job_from_start_to_adapter(tmp_path: Path, finished: Run) -> None:
    run = finished
    stages = [message.stage for message in run.of_kind("stage")]
    assert stages == list(JobStage)
    steps = run.of_kind("step")
    assert [step.step for step in steps] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert steps[-1].valid_loss < steps[0].valid_loss
    assert [checkpoint.folder for checkpoint in run.of_kind("checkpoint")] == [f"checkpoint-{n}" for n in (2, 4, 6)]

    dense, finetune = run.of_kind("memory")
    assert (dense.phase, finetune.phase) == ("dense_reference", "finetune")
    assert 0 < finetune.activation_bytes < dense.activation_bytes
    selection = run.of_kind("selection")[-1]
    assert selection.num_blocks == 8
    assert len(selection.layers_kept_fraction) == 4
    assert 0 < max(selection.layers_kept_fraction) < 1  # deferred: involved tokens are the same few in every layer
    assert (selection.spans[0]["first_layer"], selection.spans[0]["last_layer"]) == (0, 3)

    (result,) = run.of_kind("result")
    assert run.messages[-1] is result
    assert result.report["score"] == "random"
    assert result.report["entry_layer"] == selection.entry_layer == 2
    assert result.report["held_out_after"]["loss"] == steps[-1].valid_loss
    assert result.report["activation_bytes"] == finetune.activation_bytes

    output = run.folder / "output"
    table = (output / "metrics.csv").read_text().splitlines()
    assert table[0] == "step,train_loss,valid_loss,learning_rate"
    assert len(table) == 1 + 7
    shutil.unpack_archive(output / "adapter.tar.gz", tmp_path / "unpacked")
    PeftModel.from_pretrained(tiny_model(), tmp_path / "unpacked")


def test_a_killed_trainer_goes_on_from_its_checkpoint_with_the_same_curve(
    tmp_path: Path, model_folder: Path, finished: Run
) -> None:
    spec = make_spec(tmp_path, model_folder, selection=RANDOM)
    killed = Run(tmp_path / "killed", spec)
    killed.read(until=lambda message: message.kind == "checkpoint" and message.step == 4)
    killed.process.kill()
    assert killed.wait() == -signal.SIGKILL
    checkpoint = killed.folder / "checkpoints" / killed.of_kind("checkpoint")[-1].folder
    resumed = Run(tmp_path / "killed", spec.model_copy(update={"attempt": 2, "checkpoints": [checkpoint]}))
    assert resumed.wait() == EXIT_OK, resumed.log()

    losses, after = trained(finished), trained(resumed)
    assert min(after) == int(checkpoint.name.removeprefix("checkpoint-")) + 1
    assert after == {step: losses[step] for step in after}
    assert (resumed.folder / "output" / "metrics.csv").read_text() == (
        finished.folder / "output" / "metrics.csv"
    ).read_text()


def test_predictors_are_trained_when_asked_and_reused_by_the_next_job(tmp_path: Path, model_folder: Path) -> None:
    selection = {"block_tokens": 8, "score": "predicted"}
    settings: dict[str, Any] = {"max_steps": 2, "predictor": {"hidden": 16, "steps": 30, "min_recall": 1.0}}
    first = Run(tmp_path / "first", make_spec(tmp_path, model_folder, selection=selection, **settings))
    assert first.wait() == EXIT_OK, first.log()
    (made,) = first.of_kind("predictor")
    assert not made.reused
    assert made.settings["layers"] == [2]
    assert 0 <= made.report["layers"]["2"]["recall"] <= 1
    assert made.report["parameter_fraction"] == made.report["parameters"] / tiny_model().num_parameters()
    (result,) = first.of_kind("result")
    assert (result.report["score"], result.report["predictors"]) == ("predicted", made.report)
    memory = {message.phase: message.predictor_bytes for message in first.of_kind("memory")}
    assert memory["dense_reference"] == 0 < 4 * made.report["parameters"] <= memory["finetune"]
    told = [event.message for event in first.of_kind("event")]
    assert any("new predictors of" in message and "% in layer 2" in message for message in told)
    warned = any("they are used all the same, as asked" in message for message in told)
    assert warned == (made.report["layers"]["2"]["recall"] < 1)

    settings["predictor"]["min_recall"] = 0.0
    automatic = make_spec(tmp_path, model_folder, **settings)  # score: auto
    second = Run(tmp_path / "second", automatic.model_copy(update={"job_id": "ftjob-second"}))
    assert second.wait() == EXIT_OK, second.log()
    (found,) = second.of_kind("predictor")
    assert (found.reused, found.folder, found.report) == (True, made.folder, made.report)
    assert second.of_kind("result")[0].report["score"] == "predicted"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
    tmp_path: Path, model_folder: Path, finished: Run
) -> None:
    copied = tmp_path / "job"
    shutil.copytree(finished.folder / "checkpoints", copied / "checkpoints")
    newest, older = copied / "checkpoints" / "checkpoint-6", copied / "checkpoints" / "checkpoint-4"
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(content)
    spec = make_spec(tmp_path, model_folder, selection=RANDOM).model_copy(update={"checkpoints": [newest, older]})
    resumed = Run(copied, spec)
    assert resumed.wait() == EXIT_OK, resumed.log()
    assert any("checkpoint-6: optimizer.pt is " in event.message for event in resumed.of_kind("event"))
    assert trained(resumed) == {step: loss for step, loss in trained(finished).items() if step > 4}


def test_a_paused_job_goes_on_at_the_next_step_and_measures_nothing_again(
    tmp_path: Path, model_folder: Path, finished: Run
) -> None:
    spec = make_spec(tmp_path, model_folder, selection=RANDOM, checkpoint_steps=1000)
    paused = Run(tmp_path / "job", spec)
    paused.read(until=lambda message: message.kind == "step" and message.step == 2)
    paused.process.terminate()
    assert paused.wait() == EXIT_STOPPED, paused.log()
    assert not paused.of_kind("result")
    (saved,) = paused.of_kind("checkpoint")
    last = max(trained(paused))
    assert saved.step == last
    going_on = spec.model_copy(update={"checkpoints": [tmp_path / "job" / "checkpoints" / saved.folder]})
    resumed = Run(tmp_path / "job", going_on)
    assert resumed.wait() == EXIT_OK, resumed.log()
    assert trained(paused) | trained(resumed) == trained(finished)
    assert min(trained(resumed)) == last + 1
    assert [message.phase for message in resumed.of_kind("memory")] == ["finetune"]
    assert (resumed.folder / "output" / "metrics.csv").read_text() == (
        finished.folder / "output" / "metrics.csv"
    ).read_text()


def test_a_job_that_searches_thresholds_tells_how_far_it_is_and_leaves_when_asked(
    tmp_path: Path, model_folder: Path
) -> None:
    endless = {"samples": 2, "sweeps": 100}
    run = Run(tmp_path / "job", make_spec(tmp_path, model_folder, preset="jenga-paper", calibration=endless))
    run.read(until=lambda message: message.kind == "event" and message.message == "Sweep 1 of 100 is done")
    run.process.terminate()
    assert run.wait() == EXIT_STOPPED, run.log()
    assert trained(run) == {}


def test_a_job_that_is_stopped_finishes_with_what_is_trained(tmp_path: Path, model_folder: Path) -> None:
    run = Run(tmp_path / "job", make_spec(tmp_path, model_folder, max_steps=5000, checkpoint_steps=5000))
    run.read(until=lambda message: message.kind == "step" and message.step == 2)
    run.process.send_signal(FINISH_SIGNAL)
    assert run.wait() == EXIT_OK, run.log()
    last = max(trained(run))
    assert last < 5000
    assert [checkpoint.step for checkpoint in run.of_kind("checkpoint")] == [last]
    assert any(f"stopped at step {last} of 5000" in warning for warning in run.of_kind("result")[0].report["warnings"])
    assert (run.folder / "output" / "adapter.tar.gz").exists()


@pytest.mark.slow
def test_a_paused_job_may_finish_without_another_step(tmp_path: Path, model_folder: Path, finished: Run) -> None:
    shutil.copytree(finished.folder / "checkpoints", tmp_path / "job" / "checkpoints")
    checkpoint = tmp_path / "job" / "checkpoints" / "checkpoint-4"
    spec = make_spec(tmp_path, model_folder, selection=RANDOM)
    run = Run(tmp_path / "job", spec.model_copy(update={"checkpoints": [checkpoint], "finish": True}))
    assert run.wait() == EXIT_OK, run.log()
    assert trained(run) == {}
    table = (run.folder / "output" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table[1:]] == ["0", "1", "2", "3", "4"]


def test_a_job_on_two_devices_is_one_job(tmp_path: Path, model_folder: Path) -> None:
    """Two processes on this CPU. Thresholds are rank 0's alone, and must reach the other."""
    spec = make_spec(tmp_path, model_folder, preset="jenga-paper", calibration={"samples": 1, "sweeps": 0}, max_steps=4)
    run = Run(tmp_path / "job", spec.model_copy(update={"gpus": 2}))
    assert run.wait() == EXIT_OK, run.log()
    assert [message.stage for message in run.of_kind("stage")] == list(JobStage)
    assert sorted(trained(run)) == [1, 2, 3, 4]
    assert [checkpoint.step for checkpoint in run.of_kind("checkpoint")] == [2, 4]
    assert any("2 devices, a share of the data each" in event.message for event in run.of_kind("event"))
    checkpoint = tmp_path / "job" / "checkpoints" / "checkpoint-2"
    again = Run(tmp_path / "job", spec.model_copy(update={"gpus": 2, "checkpoints": [checkpoint]}))
    assert again.wait() == EXIT_OK, again.log()
    assert trained(again) == {step: loss for step, loss in trained(run).items() if step > 2}


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_job_with_it(tmp_path: Path, model_folder: Path) -> None:
    spec = make_spec(tmp_path, model_folder, preset="lora", max_steps=5000)
    run = Run(tmp_path / "job", spec.model_copy(update={"gpus": 2}))
    run.read(until=lambda message: message.kind == "step" and message.step == 1)
    (other,) = psutil.Process(run.process.pid).children()
    other.kill()
    assert run.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("late", ["never", "past"])
def test_a_trainer_lives_as_long_as_its_lease(tmp_path: Path, model_folder: Path, late: str) -> None:
    run = Run(tmp_path / "job", make_spec(tmp_path, model_folder, max_steps=5000), lease=True)
    run.read(until=lambda message: message.kind == "step" and message.step == 1)
    if late == "never":
        os.close(run.lease)  # the supervisor is gone
    else:
        watchdog.tell(run.lease, time.monotonic() - 1)
    assert run.wait() == (-signal.SIGKILL if late == "never" else -signal.SIGALRM)


def test_the_caller_s_mistakes_are_told_with_code_and_field(tmp_path: Path, model_folder: Path) -> None:
    run = Run(tmp_path / "long", make_spec(tmp_path / "long", model_folder, context_length_tokens=100_000))
    assert run.wait() == EXIT_USER_ERROR
    (error,) = run.of_kind("error")
    assert (error.code, error.param) == ("invalid_config", "jenga.context_length_tokens")


def test_an_exception_of_ours_is_told_and_its_traceback_logged(tmp_path: Path, model_folder: Path) -> None:
    spec = make_spec(tmp_path, model_folder)
    run = Run(tmp_path / "job", spec.model_copy(update={"model_folder": tmp_path / "gone"}))
    assert run.wait() == EXIT_USER_ERROR
    (error,) = run.of_kind("error")
    assert error.code == "training_failed"
    assert "Traceback" in run.log()

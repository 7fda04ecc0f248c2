"""A trainer without a model: real process, real pipe, real messages, no torch.

What it does is written in the first row of the training file: `{"text": "die, succeed"}` dies by SIGKILL in the first
attempt and succeeds in the second; the last word holds for all further attempts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

from jenga_core.service.jobs.state import JobStage
from tests.worker.fake_trainer_steps import STEADY_SECONDS, STEADY_STEPS
from worker import watchdog
from worker.protocol import (
    EVENTS_FD_VARIABLE,
    EXIT_OK,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    FINISH_SIGNAL,
    CheckpointMessage,
    ErrorMessage,
    EventMessage,
    MemoryMessage,
    Message,
    PlanMessage,
    PredictorMessage,
    ResultMessage,
    SelectionMessage,
    StageMessage,
    StepMessage,
    TrainerSpec,
)

STEPS = 3
HANG_SECONDS = 120
"""A hanging trainer that nobody kills ends by itself, and its test fails."""

pipe = os.fdopen(int(os.environ[EVENTS_FD_VARIABLE]), "w", buffering=1)
stopping = threading.Event()
finishing = threading.Event()


def send(message: Message) -> None:
    pipe.write(message.model_dump_json() + "\n")


def train(spec: TrainerSpec, folder: Path, *, first_step: int = 0, upto: int = STEPS, pause_seconds: float = 0) -> None:
    send(StageMessage(stage=JobStage.FINETUNE))
    send(PlanMessage(total_steps=STEPS, hyperparameters={**spec.hyperparameters, "n_epochs": 1}))
    if first_step == 0:
        send(StepMessage(step=0, valid_loss=3.5))
    for step in range(first_step + 1, upto + 1):
        loss = 3.0 / step + spec.attempt / 100
        send(
            StepMessage(step=step, train_loss=loss, learning_rate=1e-4, tokens_per_second=10, trained_tokens=step * 64)
        )
        send(SelectionMessage(step=step, entry_layer=1, num_blocks=4, layers_kept_fraction=[1.0, 0.5], spans=[]))
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True, exist_ok=True)
        send(CheckpointMessage(step=step, folder=f"step-{step}", metrics={"train_loss": loss}))
        if stopping.wait(pause_seconds):
            sys.exit(EXIT_STOPPED)
        if finishing.is_set():
            return


def succeed(spec: TrainerSpec, folder: Path, *, pause_seconds: float = 0) -> int:
    first_step = int(spec.checkpoints[0].name.removeprefix("step-")) if spec.checkpoints else 0
    upto = first_step if spec.finish and first_step else STEPS
    train(spec, folder, first_step=first_step, upto=upto, pause_seconds=pause_seconds)
    return publish(spec, folder, first_step)


def publish(spec: TrainerSpec, folder: Path, first_step: int) -> int:
    for phase in ("dense_reference", "finetune"):
        numbers = {
            "states_bytes": 1,
            "activation_bytes": 2,
            "predictor_bytes": 0,
            "other_bytes": 4,
            "peak_bytes": 2**33,
        }
        send(MemoryMessage(phase=phase, device="cpu", **numbers))
    made = spec.predictors_folder / "0123456789abcdef"
    reused = made.exists()
    made.mkdir(exist_ok=True)
    send(PredictorMessage(folder=made.name, reused=reused, settings={"layers": [1]}, report={"parameters": 5}))
    output = folder / "output"
    (output / "adapter").mkdir(parents=True, exist_ok=True)
    (output / "adapter" / "adapter_config.json").write_text("{}")
    (output / "metrics.csv").write_text("step,train_loss\n1,3.0\n")
    with tarfile.open(output / "adapter.tar.gz", "w:gz") as archive:
        archive.add(output / "adapter", arcname="adapter")
    send(ResultMessage(report={"score": "exact", "first_step": first_step}))
    return EXIT_OK


def steady(spec: TrainerSpec, folder: Path) -> int:
    """Twelve steps whose loss tells the step alone, each with a checkpoint: what any number of attempts must add up
    to."""
    first_step = int(spec.checkpoints[0].name.removeprefix("step-")) if spec.checkpoints else 0
    send(StageMessage(stage=JobStage.FINETUNE))
    send(PlanMessage(total_steps=STEADY_STEPS, hyperparameters=spec.hyperparameters))
    for step in range(first_step + 1, STEADY_STEPS + 1):
        if stopping.wait(STEADY_SECONDS):
            return EXIT_STOPPED
        if finishing.is_set() and step > 1:
            break
        send(StepMessage(step=step, train_loss=3 / step, trained_tokens=step * 64))
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True, exist_ok=True)
        send(CheckpointMessage(step=step, folder=f"step-{step}", metrics={}))
    return publish(spec, folder, first_step)


def behave(word: str, spec: TrainerSpec, folder: Path) -> int:
    match word:
        case "succeed":
            return succeed(spec, folder)
        case "slow":
            return succeed(spec, folder, pause_seconds=0.3)
        case "steady":
            return steady(spec, folder)
        case "user_error":
            send(ErrorMessage(code="invalid_training_file", message="Row 2: no good", param="training_file"))
            return EXIT_USER_ERROR
        case "out_of_memory":
            send(ErrorMessage(code="out_of_memory", message="needs 9 GiB, has 8", peak_bytes=9 * 2**30))
            return EXIT_OUT_OF_MEMORY
        case "raise":
            raise ValueError("the loss is not a number")
        case "no_result":
            return EXIT_OK
        case "no_files":
            send(ResultMessage(report={}))
            return EXIT_OK
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "train_and_die":
            train(spec, folder, upto=2)
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang_up":  # closes the pipe, then works on
            pipe.close()
            time.sleep(0.5)
            return 3
        case "hang" | "hang_hard":
            send(EventMessage(message="hanging"))
            return EXIT_STOPPED if stopping.wait(HANG_SECONDS) else EXIT_OK
        case "leave_helper":
            helper = subprocess.Popen(
                [sys.executable, "-c", f"import time; time.sleep({HANG_SECONDS})"], close_fds=False
            )
            (folder / "helper.pid").write_text(str(helper.pid))
            return succeed(spec, folder)
        case "garbage":
            pipe.write('{"kind": "step"}\nnot json\n\n[]\n{"kind": "step", "step": 1, "train_loss": NaN}\n')
            send(EventMessage(message="a nul: \0", data={"nan": float("nan")}))
            return succeed(spec, folder)
        case "unfinished_line":
            code = succeed(spec, folder)
            pipe.write('{"kind": "event", "message": "cut o')
            return code
    raise AssertionError(f"no such behaviour: {word}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job-dir", type=Path, required=True)
    folder: Path = parser.parse_args().job_dir
    spec = TrainerSpec.model_validate_json((folder / "spec.json").read_text())
    words = json.loads(spec.training_path.read_text().splitlines()[0])["text"].split(", ")
    word = words[min(spec.attempt, len(words)) - 1]
    (folder / "trainer.pid").write_text(f"{os.getpid()} {os.getppid()}")
    ignored = word == "hang_hard"
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignored else lambda *_: stopping.set())
    signal.signal(FINISH_SIGNAL, lambda *_: finishing.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [FINISH_SIGNAL])
    watchdog.watch()
    return behave(word, spec, folder)


if __name__ == "__main__":
    sys.exit(main())

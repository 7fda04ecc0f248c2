"""`jenga train CONFIG`: one run on this machine, without the service, with the progress of `jenga watch`.

    model = "smollm2-135m"            # a model of this machine's data folder, or a folder
    training_file = "train.jsonl"     # paths are relative to the config
    validation_file = "heldout.jsonl"
    output = "run"

    [hyperparameters]                 # n_epochs, batch_size, learning_rate_multiplier
    batch_size = 1

    [jenga]                           # JengaConfig
    keep_fraction = 0.4
    max_steps = 100

The run is the trainer that the service starts, in a process of its own: what it says on its pipe is shown here instead
of being written to a database. Ctrl-C once saves a checkpoint and leaves, `--resume` goes on from it with the same
settings (cli/run_folder.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from cli import run_folder
from cli.display import Display, Snapshot, outcome
from cli.output import Json, emit_line, say
from cli.settings import DataDir, settings_of
from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError, JengaError
from jenga_core.service.models.inspection import inspect_folder
from jenga_core.service.processes import dies_with_this
from jenga_core.service.settings import Settings

EVENTS_FD_VARIABLE = "JENGA_EVENTS_FD"  # as in worker/protocol.py, which describes the pipe
EXIT_STOPPED = 12
EXIT_INTERRUPTED = 130
LOG_LINES = 20


class TrainingRun(BaseModel):
    """The config file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """A model of the data folder, as `jenga models list` names it, or a folder with config.json."""

    training_file: Path
    validation_file: Path | None = None
    output: Path = Path("run")
    """Folder of the run: adapter, metrics, checkpoints."""

    seed: int = 42
    hyperparameters: dict[Literal["n_epochs", "batch_size", "learning_rate_multiplier"], Any] = {}
    """OpenAI's."""

    jenga: dict[str, Any] = {}
    """JengaConfig."""


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", exists=True, dir_okay=False, help="TOML; docs/cli.md has one.")
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the output.")] = False,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Train on this machine, without the service. Ctrl-C saves a checkpoint; --resume goes on from it.

    CONFIG is TOML: model, training_file, validation_file, output, seed, and the tables hyperparameters and jenga.
    With --json each line is a message of the trainer.
    """
    run = read(config)
    folder = (config.parent / run.output).absolute()
    spec = _spec(run, config.parent.absolute(), folder, settings_of(data_dir))
    with run_folder.held(folder):
        if not resume:
            run_folder.begin(folder, spec)
        elif not run_folder.go_on(folder, spec):
            say(f"Already finished: {folder / 'output' / 'adapter'}. With more max_steps it would go on.")
            return
        raise typer.Exit(_follow(config, folder, as_json))


def read(path: Path) -> TrainingRun:
    """The checked config. Raises ConfigError that names the entry."""
    try:
        run = TrainingRun.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']} (got {first.get('input')!r})") from error
    JengaConfig.parse(run.jenga)
    return run


def _spec(run: TrainingRun, base: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """A TrainerSpec (worker/protocol.py) as JSON."""
    model = _model_folder(run.model, base, settings)
    for name in ("training_file", "validation_file"):
        path = getattr(run, name)
        if path is not None and not (base / path).is_file():
            raise ConfigError(f"{name}: there is no file {base / path}")
    return {
        "job_id": f"train-{folder.name}",
        "attempt": 1,
        "model_name": model.name,
        "model_folder": str(model),
        "fingerprint": inspect_folder(model)["fingerprint"],
        "predictors_folder": str(folder / "predictors"),
        "training_path": str(base / run.training_file),
        "validation_path": str(base / run.validation_file) if run.validation_file else None,
        "config": JengaConfig.parse(run.jenga).model_dump(mode="json"),
        "hyperparameters": run.hyperparameters,
        "seed": run.seed,
        "checkpoints": [str(path) for path in run_folder.checkpoints(folder)],
    }


def _model_folder(model: str, base: Path, settings: Settings) -> Path:
    for folder in (base / Path(model).expanduser(), settings.data_dir / "models" / model.replace("/", "--")):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(
        f"model {model!r} is no folder with a config.json, and not in {settings.data_dir / 'models'}; "
        "add it with `jenga models add`"
    )


def _follow(config: Path, folder: Path, as_json: bool) -> int:
    """Start the trainer, show what it says, and return the exit code."""
    snapshot = Snapshot(state="running")
    error: dict[str, Any] | None = None
    with _trainer(folder) as (process, messages), Display(folder.name, Console(), quiet=as_json) as display:
        asked = False
        while True:
            try:
                for message in messages:
                    if as_json:
                        emit_line(message)
                    _take(message, snapshot, display)
                    display.update(snapshot)
                    error = message if message["kind"] == "error" else error
                code = process.wait()
                break
            except KeyboardInterrupt:
                if asked:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    snapshot.remark = "saving a checkpoint; Ctrl-C again gives it up"
                    os.killpg(process.pid, signal.SIGTERM)
                asked = True
    if code == 0:
        if not as_json:
            print(outcome(snapshot, folder / "output" / "adapter"))
        return 0
    if asked:
        kept = run_folder.checkpoints(folder)
        say(f"Stopped. {f'Saved as {kept[0]}; go on' if kept else 'Nothing was saved; begin again'} with "
            f"`jenga train {config}{' --resume' if kept else ''}`.")  # fmt: skip
        return EXIT_INTERRUPTED
    log = folder / "stderr.log"
    if error is None:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise JengaError(f"the trainer ended with exit code {code}:\n{tail}")
    raise JengaError(f"{error['message']} (what it printed is in {log})", code=error["code"])


@contextmanager
def _trainer(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[dict[str, Any]]]]:
    """The trainer in a session of its own, so that Ctrl-C reaches it only as we say; gone when the block ends."""
    reader, writer = os.pipe()
    environment = {**os.environ, EVENTS_FD_VARIABLE: str(writer), "HF_HUB_OFFLINE": "1"}
    with (folder / "stderr.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.trainer", "--job-dir", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=(writer,),
            start_new_session=True, preexec_fn=dies_with_this(signal.SIGKILL),
        )  # fmt: skip
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            yield process, _messages(pipe)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _messages:  # noqa: N801 - an iterator, which unlike a generator outlives the KeyboardInterrupt raised through it
    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __iter__(self) -> _messages:
        return self

    def __next__(self) -> dict[str, Any]:
        line = self._pipe.readline()
        if not line:
            raise StopIteration
        return dict(json.loads(line))


def _take(message: dict[str, Any], snapshot: Snapshot, display: Display) -> None:
    """One message of the trainer into what is shown."""
    now = time.time()
    match message["kind"]:
        case "stage":
            snapshot.stage = message["stage"]
            display.tell(now, f"Stage {message['stage']} began")
        case "plan":
            snapshot.total_steps = message["total_steps"]
        case "event":
            display.tell(now, message["message"], message["level"])
        case "step":
            snapshot.step = message["step"]
            if message["train_loss"] is not None:
                snapshot.losses.append(message["train_loss"])
                snapshot.seconds_left = _left(snapshot, now)
            snapshot.held_out = message["valid_loss"] if message["valid_loss"] is not None else snapshot.held_out
            snapshot.tokens_per_second = message["tokens_per_second"] or snapshot.tokens_per_second
            losses = {"training": message["train_loss"], "validation": message["valid_loss"]}
            told = ", ".join(f"{name} loss={loss:.4g}" for name, loss in losses.items() if loss is not None)
            if told and not display.is_live:  # the live lines have the numbers
                display.tell(now, f"Step {snapshot.step}/{snapshot.total_steps}: {told}")
        case "memory" if message["phase"] == "dense_reference":
            snapshot.dense_activation_bytes = message["activation_bytes"]
        case "memory" if message["phase"] == "finetune":
            snapshot.activation_bytes = message["activation_bytes"]
        case "checkpoint":
            display.tell(now, f"Checkpoint created at step {message['step']}")


def _left(snapshot: Snapshot, now: float) -> float | None:
    """Seconds to the last step, as if the rest took as long each as those since the first."""
    if snapshot.first_step_at is None:
        snapshot.first_step_at, snapshot.first_step = now, snapshot.step
        return None
    done = snapshot.step - snapshot.first_step
    if not done or not snapshot.total_steps:
        return None
    return (now - snapshot.first_step_at) / done * (snapshot.total_steps - snapshot.step)

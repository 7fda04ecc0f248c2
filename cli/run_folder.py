"""The folder of a `jenga train`: whether a run may begin in it, or go on, and with which settings.

    spec.json        what the newest run was asked (TrainerSpec of worker/protocol.py)
    checkpoints/     states to go on from
    output/          what a run that came to its end has made; metrics.csv is written last

A run that left neither a checkpoint nor an adapter is none: another one takes its place.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError

SPEC = "spec.json"
MAY_CHANGE = ("hyperparameters.n_epochs", "jenga.max_steps", "jenga.checkpoint_steps")
"""What a run that goes on need not share with what it goes on from: how long it is, and how often it saves."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else may train in the folder, which is made if need be, until the block ends. Raises ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another `jenga train` is at work in {folder}; wait for it, or choose another output"
            ) from error
        yield
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("checkpoints/checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=_step_of, reverse=True)


def begin(folder: Path, spec: dict[str, Any]) -> None:
    """Make the folder that of a new run. Raises ConfigError if it holds one."""
    if checkpoints(folder):
        raise ConfigError(f"{folder} holds a run already; go on with --resume, or choose another output")
    if _adapter(folder).exists():
        raise ConfigError(f"{folder} holds a finished run; choose another output")
    _write(folder, spec)


def go_on(folder: Path, spec: dict[str, Any]) -> bool:
    """Make the folder that of a run which goes on; False if it has come to its end already.

    Raises ConfigError if there is nothing to go on from, or if that was a run of other settings.
    """
    before = json.loads((folder / SPEC).read_text()) if (folder / SPEC).exists() else spec
    changed = _differences(before, spec)
    foreign = [f"  {name}: {was!r} then, {now!r} now" for name, was, now in changed if name not in MAY_CHANGE]
    saved = checkpoints(folder)
    if foreign and (saved or _has_ended(folder)):
        told = "\n".join(foreign)
        raise ConfigError(f"{folder} holds a run of other settings; restore them, or choose another output:\n{told}")
    if _has_ended(folder) and (not changed or _is_enough(saved, spec["config"]["max_steps"])):
        return False
    if not saved:
        raise ConfigError(f"{folder} holds no checkpoint to go on from; leave --resume out")
    _write(folder, spec)
    return True


def _write(folder: Path, spec: dict[str, Any]) -> None:
    (folder / SPEC).write_text(json.dumps(spec, indent=2))


def _adapter(folder: Path) -> Path:
    return folder / "output" / "adapter"


def _has_ended(folder: Path) -> bool:
    """Whether the newest run made what is in `output`, and not a shorter one before it."""
    asked, last = folder / SPEC, folder / "output" / "metrics.csv"
    return asked.exists() and last.exists() and last.stat().st_mtime_ns > asked.stat().st_mtime_ns


def _is_enough(saved: list[Path], max_steps: int | None) -> bool:
    return bool(saved) and max_steps is not None and _step_of(saved[0]) >= max_steps


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Names of the settings in which two specs differ, as the config has them, each with its two values."""
    then, today = _settings(before), _settings(now)
    return [(name, then.get(name), today.get(name)) for name in then | today if then.get(name) != today.get(name)]


def _settings(spec: dict[str, Any]) -> dict[str, Any]:
    """All that a run's outcome depends on. Paths are seen from the run's folder, for both may be moved together."""
    folder = Path(spec["predictors_folder"]).parent
    files = {
        f"{name}_file": spec[f"{name}_path"] and os.path.relpath(spec[f"{name}_path"], folder)
        for name in ("training", "validation")
    }
    return _flat(
        {
            "model": f"{spec['model_name']}, fingerprint {spec['fingerprint'][:12]}",
            **files,
            "seed": spec["seed"],
            "hyperparameters": spec["hyperparameters"],
            "jenga": JengaConfig.parse(spec["config"]).model_dump(mode="json"),
        }
    )


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """`{"jenga": {"max_steps": 2}}` to `{"jenga.max_steps": 2}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat

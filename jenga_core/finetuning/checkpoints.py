"""A state to go on from, on disk: all of it, or nothing.

    checkpoint-40/
      adapter_model.safetensors, adapter_config.json    the adapter
      optimizer.pt, scheduler.pt, rng_state.pth         the Trainer's
      trainer_state.json                                step, epoch (the position in the data), losses so far
      jenga/                                            what the selection depends on (written by the caller)
      manifest.json                                     size and SHA-256 of every file above

It is written into `.partial/`, every file is flushed to the disk, and one rename makes it a checkpoint. So a folder
named `checkpoint-N` was complete once; whether it still is, `verify` says. The two newest are kept, because the newest
may turn out to be damaged; the one a run goes on from is always among them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jenga_core.errors import JengaError

MANIFEST = "manifest.json"
STATE_FOLDER = "jenga"
PARTIAL = ".partial"
KEEP = 2
SPARE_BYTES = 64 * 2**20
"""What must stay free beside the checkpoint itself."""


class CheckpointDamaged(JengaError):
    """The folder is not what its manifest says."""

    code = "checkpoint_damaged"


class DiskFull(JengaError):
    """There is no room for a checkpoint."""

    code = "disk_full"


def name_of(step: int) -> str:
    """transformers' own name, which it also writes."""
    return f"checkpoint-{step}"


@contextmanager
def writing(folder: Path, step: int, *, need_bytes: int) -> Iterator[Path]:
    """Yields the folder in which the caller makes `checkpoint-<step>`; it appears in `folder` when the block ends well.

    Raises:
        DiskFull: before anything is written when `need_bytes` do not fit, or when the disk filled up meanwhile. Nothing
            half-written stays, and older checkpoints are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    _check_room(folder, step, need_bytes)
    try:
        partial.mkdir()
        yield partial
        _seal(partial / name_of(step))
        target = folder / name_of(step)
        if target.exists():  # an earlier attempt came as far; its steps were repeated
            os.replace(target, partial / "replaced")
        os.replace(partial / name_of(step), target)
        _flush(folder)
    except Exception as error:
        # A full disk is an OSError of ours, a RuntimeError of torch.save and an error of its own in safetensors.
        if isinstance(error, OSError) or shutil.disk_usage(folder).free < SPARE_BYTES:
            what = f"the checkpoint of step {step} could not be written to {folder}"
            raise DiskFull(f"{what}: {error}; {_remedy()}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in whole_or_not(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def whole_or_not(folder: Path) -> list[Path]:
    """Checkpoints in the folder, newest first."""
    found = [path for path in folder.glob(name_of(0)[:-1] + "*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done."""
    return int(checkpoint.name.rpartition("-")[2])


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest. Raises CheckpointDamaged, which names the file."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{checkpoint.name} has no readable {MANIFEST}: {error}") from error
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointDamaged(f"{checkpoint.name} lacks {name}")
        found = {"bytes": path.stat().st_size, "sha256": _digest(path)}
        if found != expected:
            raise CheckpointDamaged(
                f"{checkpoint.name}: {name} is not what was written ({found} instead of {expected})"
            )


def newest_whole(candidates: Sequence[Path]) -> tuple[Path | None, list[str]]:
    """The first candidate that verifies, and why those before it do not."""
    problems = []
    for candidate in candidates:
        try:
            verify(candidate)
        except CheckpointDamaged as error:
            problems.append(error.message)
        else:
            return candidate, problems
    return None, problems


def _seal(checkpoint: Path) -> None:
    """Write the manifest, and bring everything to the disk."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    files = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in paths
    }
    manifest = checkpoint / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n")
    for path in (*paths, manifest, *(each for each in checkpoint.rglob("*") if each.is_dir()), checkpoint):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(folder: Path, step: int, need_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need_bytes + SPARE_BYTES:
        raise DiskFull(
            f"the checkpoint of step {step} needs about {need_bytes / 2**20:.0f} MiB and {SPARE_BYTES / 2**20:.0f} MiB "
            f"to spare, but {folder} has {free / 2**20:.0f} MiB free; {_remedy()}"
        )


def _remedy() -> str:
    return "free some space, or move the data folder to a larger disk, and submit the job again"

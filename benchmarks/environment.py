"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "transformers", "peft", "liger-kernel")


def describe() -> dict[str, str]:
    """GPU or CPU, driver, versions, commit (JENGA_COMMIT where there is no git), date. Opens the GPU."""
    has_gpu = torch.cuda.is_available()
    return {
        "hardware": torch.cuda.get_device_name() if has_gpu else platform.processor() or "cpu",
        "driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version()) if has_gpu else "none",
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are measured."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def commit() -> str:
    """Of the sources that are measured; "unknown" where neither JENGA_COMMIT nor git says it."""
    return os.environ.get("JENGA_COMMIT") or _command(
        "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
    )


def hardware_slug() -> str:
    """`h100`, `a800`, ... or `cpu`, for names of files. Asks the driver's tool: the GPU stays closed to this process,
    whose context would take half a GiB from the one that measures."""
    name = _command("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()[:1]
    words = [word for word in (name[0] if name else "").lower().split() if word not in ("nvidia", "geforce", "tesla")]
    return words[0].split("-")[0] if words and words != ["unknown"] else "cpu"


def only_gpu(index: int | None) -> dict[str, str]:
    """Environment of a process that sees that GPU of this host alone; None: as it is."""
    return {} if index is None else {"CUDA_VISIBLE_DEVICES": str(index)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _command(*arguments: str) -> str:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()

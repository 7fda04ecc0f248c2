"""`jenga doctor`: what this machine has, what it lacks, and what to do about it.

    ok    GPU         NVIDIA H100 80GB HBM3, driver 580.95
    warn  base models none yet
                      -> jenga models add smollm2-135m

A check answers with a Finding. `fail` means that jobs cannot run like this, `warn` that something is missing or slow.
Nothing is changed: no folder, file or table is made.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import httpx
import typer
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from rich.console import Console
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from cli import amounts
from cli.connection import Service, base_url
from cli.output import PIPE_COLUMNS, Json, emit
from cli.settings import DataDir, settings_of
from jenga_core.errors import JengaError
from jenga_core.service.jobs import queue
from jenga_core.service.settings import Settings
from migrations.upgrade import alembic_config

OLDEST_PYTHON = (3, 11)
TRAINING = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
NEEDED_BYTES = 2 * 10**9
"""Less free disk than this, and a job has no room for its checkpoints."""

ROOMY_BYTES = 20 * 10**9
PROBE_SECONDS = 300
"""Importing torch and compiling a first kernel on a busy machine."""

State = Literal["ok", "warn", "fail"]
_STYLES: dict[str, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    state: State
    found: str
    fix: str | None = None


def doctor(as_json: Json = False, data_dir: DataDir = None) -> None:
    """Check GPU, driver, Triton, broker, database, disk and versions; say what to fix. Exit code 1: jobs cannot run."""
    settings = settings_of(data_dir)
    machine = _machine()
    checks: list[Callable[[], Finding]] = [
        _python, _packages, lambda: _driver(machine), lambda: _torch(machine), lambda: _kernels(machine),
        lambda: _disk(settings), lambda: _database(settings), lambda: _broker(settings), lambda: _service(settings),
    ]  # fmt: skip
    findings = [check() for check in checks]
    if findings[-1].state == "ok":
        findings.append(_models(settings))
    if as_json:
        emit([asdict(finding) for finding in findings])
    else:
        _show(findings)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        style = _STYLES[finding.state]
        console.print(f"[{style}]{finding.state:4}[/]  {finding.name:{width}}  ", end="", highlight=False)
        console.print(finding.found, markup=False, highlight=False, soft_wrap=True)
        if finding.fix:
            console.print(f"{'':{width + 8}}-> {finding.fix}", markup=False, highlight=False, soft_wrap=True)


def _python() -> Finding:
    found = f"Python {sys.version.split()[0]}, Jenga {_version('jenga') or 'from its sources'}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("Python", "fail", found, "install Python 3.11 or newer")
    return Finding("Python", "ok", found)


def _packages() -> Finding:
    versions = {name: _version(name) for name in TRAINING}
    found = ", ".join(f"{name} {known}" for name, known in versions.items() if known)
    missing = [name for name, known in versions.items() if known is None]
    if missing:
        fix = "pip install 'jenga[train]'; a machine that only serves the API needs none of them"
        return Finding("packages", "warn", f"{', '.join(missing)} missing", fix)
    return Finding("packages", "ok", found)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any] | str:
    """What torch and Triton find, asked in a process of its own; or why nothing could be asked."""
    command = [sys.executable, "-m", "jenga_core.finetuning.machine"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS} s"
    if asked.returncode:
        return (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
    return dict(json.loads(asked.stdout.splitlines()[-1]))


def _driver(machine: dict[str, Any] | str) -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding(
            "GPU", "warn", "no NVIDIA driver: jobs train on the CPU, slowly", "install the driver where there is a GPU"
        )
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, timeout=60)
    if asked.returncode:
        reason = (asked.stdout + asked.stderr).strip()
        return Finding(
            "GPU", "fail", f"nvidia-smi fails: {reason}", "reinstall the NVIDIA driver, or reboot after an update"
        )
    drivers = asked.stdout.split()
    devices = machine["devices"] if isinstance(machine, dict) else []
    names = ", ".join(f"{device['name']} ({amounts.size(device['memory_bytes'])})" for device in devices)
    found = f"{names or amounts.many(len(drivers), 'GPU')}, driver {drivers[0]}"
    old = [device["name"] for device in devices if not device["bfloat16"]]
    if old:
        return Finding("GPU", "warn", f"{found}; {', '.join(old)} computes bfloat16 slowly or not at all",
                       "use a GPU of compute capability 8.0 or newer")  # fmt: skip
    return Finding("GPU", "ok", found)


def _torch(machine: dict[str, Any] | str) -> Finding:
    if isinstance(machine, str):
        return Finding("PyTorch", "fail", f"cannot be used: {machine}", "pip install 'jenga[train]'")
    if machine["cuda"]:
        seen = amounts.many(len(machine["devices"]), "GPU")
        return Finding("PyTorch", "ok", f"{machine['torch']} sees {seen} through CUDA {machine['cuda_built']}")
    if shutil.which("nvidia-smi") is not None:
        built = f"is built for CUDA {machine['cuda_built']}" if machine["cuda_built"] else "is built without CUDA"
        return Finding("PyTorch", "fail", f"{machine['torch']} {built} and sees no GPU",
                       "install the torch for this driver (pytorch.org), or check CUDA_VISIBLE_DEVICES")  # fmt: skip
    return Finding("PyTorch", "ok", f"{machine['torch']}, on the CPU")


def _kernels(machine: dict[str, Any] | str) -> Finding:
    if isinstance(machine, str):
        return Finding("Triton", "warn", "not asked: PyTorch cannot be used")
    if machine["kernels"] is None:
        return Finding("Triton", "ok", f"{machine['triton'] or 'not installed'}; used on GPUs only")
    if machine["triton"] is None:
        return Finding("Triton", "fail", "not installed", "pip install triton")
    if machine["kernels"] != "ok":
        return Finding("Triton", "fail", f"{machine['triton']}: {machine['kernels']}",
                       "install the triton that this torch asks for, and a C compiler")  # fmt: skip
    return Finding("Triton", "ok", f"{machine['triton']}; a kernel compiles and agrees with its twin")


def _disk(settings: Settings) -> Finding:
    folder = settings.data_dir
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    found = f"{amounts.size(free)} free for {folder}"
    if free < NEEDED_BYTES:
        return Finding("disk", "fail", found, "free some, or move it with --data-dir")
    if free < ROOMY_BYTES:
        return Finding("disk", "warn", found, "checkpoints and models of some GiB will fill it")
    if folder.exists() and folder.stat().st_mode & 0o077:
        return Finding("disk", "warn", f"{folder} can be read by others, and holds keys", f"chmod 700 {folder}")
    return Finding("disk", "ok", found)


def _database(settings: Settings) -> Finding:
    url = make_url(settings.database_url or f"sqlite:///{settings.data_dir / 'jenga.db'}")
    if (
        url.get_backend_name() == "sqlite"
        and not (settings.data_dir / "jenga.db").exists()
        and not settings.database_url
    ):
        return Finding("database", "warn", f"none in {settings.data_dir} yet", "jenga up, or jenga migrate, makes it")
    try:
        engine = create_engine(settings.database)
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        engine.dispose()
        newest = ScriptDirectory.from_config(alembic_config(settings.database)).get_current_head()
    except (SQLAlchemyError, JengaError) as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        return Finding(
            "database", "fail", f"{url!r} cannot be used: {reason}", "start it, or correct JENGA_DATABASE_URL"
        )
    if found != newest:
        return Finding(
            "database", "warn", f"{url!r} is at schema {found or 'none'}, the newest is {newest}", "jenga migrate"
        )
    return Finding("database", "ok", f"{url!r}, schema {found}")


def _broker(settings: Settings) -> Finding:
    if settings.broker_url is None:
        return Finding("broker", "ok", "embedded; jenga up starts it")
    try:
        queue.check(settings)
    except JengaError as error:
        return Finding("broker", "fail", error.message, "start it, or unset JENGA_BROKER_URL")
    return Finding("broker", "ok", str(make_url(settings.broker_url)))


def _service(settings: Settings) -> Finding:
    address = base_url(settings)
    try:
        alive = httpx.get(f"{address}/healthz", timeout=5)
    except httpx.TransportError:
        return Finding("service", "warn", f"nothing answers at {address}", "jenga up, or set JENGA_BASE_URL")
    if alive.is_error:
        return Finding(
            "service", "fail", f"{address} answers {alive.status_code}: {alive.text[:200]}", "see DATA_DIR/logs/api.log"
        )
    try:
        Service(settings).get("/models")
    except JengaError as error:
        return Finding("service", "fail", error.message, "set JENGA_API_KEY, or name the data folder with --data-dir")
    return Finding("service", "ok", f"{address} answers, and takes the key")


def _models(settings: Settings) -> Finding:
    models = Service(settings).get("/models")["data"]
    names = [model["id"] for model in models if model["owned_by"] == "jenga"]
    if not names:
        return Finding("base models", "warn", "none yet", "jenga models add smollm2-135m")
    return Finding("base models", "ok", ", ".join(names))

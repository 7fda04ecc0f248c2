"""`jenga doctor`: each check on a machine that is well, and on one that is not."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import doctor
from cli.main import app
from jenga_core.service.settings import Settings
from migrations.upgrade import upgrade

H100 = {"name": "NVIDIA H100", "memory_bytes": 85_899_345_920, "capability": "9.0", "bfloat16": True}
WELL: dict[str, Any] = {
    "torch": "2.11.0", "cuda_built": "12.8", "cuda": True, "devices": [H100], "triton": "3.6.0", "kernels": "ok",
}  # fmt: skip


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NVIDIA driver."""
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    answer = subprocess.CompletedProcess((), 0, "580.95\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_options: answer)


def test_json_tells_every_check_and_the_exit_code_that_jobs_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_machine", lambda: WELL)
    variables = {
        "JENGA_DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/name",
        "JENGA_BASE_URL": "http://127.0.0.1:1",
    }
    done = CliRunner().invoke(app, ["doctor", "--json", "--data-dir", str(tmp_path / "new")], env=variables)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    names = {"Python", "packages", "GPU", "PyTorch", "Triton", "disk", "database", "broker", "service"}
    assert set(findings) == names
    assert findings["database"]["state"] == "fail" and "secret" not in done.stdout
    assert findings["service"]["fix"] == "jenga up, or set JENGA_BASE_URL"
    assert done.exit_code == 1
    assert not (tmp_path / "new").exists()  # looking changes nothing


def test_people_see_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_machine", lambda: WELL)
    variables = {"JENGA_BASE_URL": "http://127.0.0.1:1"}
    done = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path)], env=variables)
    assert f"none in {tmp_path} yet" in done.stdout
    assert "-> jenga up, or jenga migrate, makes it" in done.stdout


def test_what_torch_says_is_asked_in_a_process_of_its_own() -> None:
    machine = doctor._machine()
    assert isinstance(machine, dict), machine
    assert set(machine) == set(WELL)


@pytest.mark.usefixtures("driver")
def test_a_gpu_that_works() -> None:
    assert doctor._driver(WELL).found == "NVIDIA H100 (80 GiB), driver 580.95"
    findings = [doctor._driver(WELL), doctor._torch(WELL), doctor._kernels(WELL)]
    assert [finding.state for finding in findings] == ["ok", "ok", "ok"]


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("changes", "check", "state", "words"),
    [
        ({"cuda": False, "cuda_built": None}, doctor._torch, "fail", "built without CUDA and sees no GPU"),
        ({"cuda": False}, doctor._torch, "fail", "built for CUDA 12.8 and sees no GPU"),
        ({"triton": None}, doctor._kernels, "fail", "not installed"),
        ({"kernels": "CompilationError: gcc"}, doctor._kernels, "fail", "CompilationError: gcc"),
        ({"devices": [{**H100, "bfloat16": False}]}, doctor._driver, "warn", "computes bfloat16 slowly"),
    ],
)
def test_a_gpu_that_does_not(changes: dict[str, Any], check: Any, state: str, words: str) -> None:
    finding = check({**WELL, **changes})
    assert finding.state == state and words in finding.found and finding.fix


def test_a_process_that_cannot_import_torch_is_told() -> None:
    finding = doctor._torch("ModuleNotFoundError: No module named 'torch'")
    assert finding.state == "fail" and "No module named 'torch'" in finding.found


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_database(settings: Settings, tmp_path: Path) -> None:
    assert doctor._database(settings).state == "ok"
    old = Settings(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path / 'old.db'}")
    upgrade(old, "base")
    finding = doctor._database(old)
    assert (finding.state, finding.fix) == ("warn", "jenga migrate")


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path / "folder" / "to come")
    for free, state in ((10**12, "ok"), (10**10, "warn"), (10**9, "fail")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: SimpleNamespace(free=free))
        assert doctor._disk(settings).state == state


def test_keys_that_others_can_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOMY_BYTES", 0)
    monkeypatch.setattr(doctor, "NEEDED_BYTES", 0)
    tmp_path.chmod(0o755)
    assert doctor._disk(Settings(data_dir=tmp_path)).fix == f"chmod 700 {tmp_path}"
    tmp_path.chmod(0o700)
    assert doctor._disk(Settings(data_dir=tmp_path)).state == "ok"

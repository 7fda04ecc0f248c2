"""What this machine offers, and whose processes compute on it. NVML is played by an object here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from jenga_core.service.fleet.registration import Process
from tests.support.processes import is_alive
from worker import devices, host_memory
from worker.protocol import EVENTS_FD_VARIABLE
from worker.watchdog import LEASE_FD_VARIABLE

GIB = 2**30


class Nvml:
    """Two GPUs; `running` holds (pid, bytes) by index."""

    def __init__(self) -> None:
        self.running: dict[int, list[tuple[int, int]]] = {}
        self.used = {0: GIB, 1: GIB}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, answer in {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{'ab'[handle]}",
            "nvmlDeviceGetName": lambda handle: "NVIDIA H100",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 * GIB, used=self.used[handle]),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
                SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.running.get(handle, [])
            ],
            "nvmlSystemGetDriverVersion": lambda: "570.1",
        }.items():
            monkeypatch.setattr(pynvml, name, answer)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml()
    made.install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is no trainer."""
    yield from _process({})


@pytest.fixture
def trainer() -> Iterator[int]:
    """A process that looks like a trainer of ours."""
    yield from _process({EVENTS_FD_VARIABLE: "7", LEASE_FD_VARIABLE: "8"})


def _process(environment: dict[str, str]) -> Iterator[int]:
    plain = {name: value for name, value in os.environ.items() if name not in (EVENTS_FD_VARIABLE, LEASE_FD_VARIABLE)}
    command = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(command, env={**plain, **environment}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has its environment
        yield process.pid
        process.kill()


def absent_pid() -> int:
    return next(pid for pid in range(4_000_000, 4_000_100) if not is_alive(pid))


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [(None, ["GPU-a", "GPU-b"]), ("1", ["GPU-b"]), ("GPU-a", ["GPU-a"]), ("0, 1", ["GPU-a", "GPU-b"])],
)
def test_the_inventory_is_what_cuda_would_see(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, uuids: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = devices.inventory()
    assert [device.uuid for device in found] == uuids
    assert (found[0].kind, found[0].name, found[0].memory_bytes) == ("cuda", "NVIDIA H100", 80 * GIB)
    assert devices.driver_version() == "570.1"


@pytest.mark.parametrize("visible", ["", "none"])
def test_a_machine_whose_gpus_are_hidden_is_its_cpu(nvml: Nvml, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.kind for device in devices.inventory()] == ["cpu"]


def test_a_machine_without_a_driver_is_one_device_with_a_lasting_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    ((first,), (second,)) = devices.inventory(), devices.inventory()
    assert (first.kind, first.uuid) == ("cpu", second.uuid)
    assert first.uuid.startswith("CPU-")
    assert 0 < first.memory_used_bytes < first.memory_bytes
    assert devices.driver_version() is None


def test_the_memory_of_a_host_is_what_its_cgroup_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "limit_bytes", lambda: None)
    machine = devices.host_memory_bytes()
    for limit, expected in ((2**20, 2**20), (2 * machine, machine)):
        monkeypatch.setattr(host_memory, "limit_bytes", lambda limit=limit: limit)
        assert devices.host_memory_bytes() == expected


def test_gpus_that_do_not_answer_are_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise pynvml.NVMLError_GpuIsLost

    monkeypatch.setattr(pynvml, "nvmlInit", broken)
    with pytest.raises(pynvml.NVMLError):
        devices.inventory()


def test_a_process_that_is_no_trainer_is_foreign(nvml: Nvml, stranger: int, trainer: int) -> None:
    nvml.running = {0: [(stranger, 5 * GIB), (trainer, GIB)], 1: [(trainer, GIB)]}
    first, second = devices.inventory()
    assert [(each.pid, each.memory_bytes) for each in first.foreign_processes] == [(stranger, 5 * GIB)]
    assert first.foreign_processes[0].name.startswith("python")
    assert list(second.foreign_processes) == []


@pytest.mark.parametrize(("held", "foreign"), [(["GPU-a"], 0), ([], 1)])
def test_a_process_out_of_sight_belongs_to_the_job_that_holds_the_device(
    nvml: Nvml, held: list[str], foreign: int
) -> None:
    nvml.running = {0: [(absent_pid(), GIB)]}
    assert len(devices.inventory(held)[0].foreign_processes) == foreign


def test_memory_that_nobody_accounts_for_is_foreign(nvml: Nvml) -> None:
    nvml.used[0] = 30 * GIB
    found: list[Any] = [list(report.foreign_processes) for report in devices.inventory()]
    assert found == [[Process(None, "unknown", 30 * GIB)], []]
    assert not devices.inventory(["GPU-a"])[0].foreign_processes


def test_a_trainer_that_a_person_started_is_foreign() -> None:
    """`jenga train` holds no device of the service."""
    for pid in _process({EVENTS_FD_VARIABLE: "7"}):
        assert not devices._is_ours(pid)

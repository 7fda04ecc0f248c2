"""The devices of this machine, as NVML sees them, and what computes on them.

A machine without NVIDIA's driver is one device, its CPU. Whose a process is, is read from its environment: every
trainer has the number of its events pipe there (worker/protocol.py). What is no trainer of ours is foreign: told, and
left alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pynvml

from jenga_core.service.fleet.registration import Process, Report
from worker import host_memory
from worker.watchdog import LEASE_FD_VARIABLE

UNSEEN_BYTES = 2 * 2**30
"""Memory in use on a GPU that no job holds and no listed process explains: somebody outside of our view is there."""

MACHINE_ID = Path("/etc/machine-id")
PROC = Path("/proc")

log = logging.getLogger(__name__)


def inventory(held: Collection[str] = ()) -> list[Report]:
    """The GPUs that this process may use (CUDA_VISIBLE_DEVICES narrows the list), or else the CPU.

    `held` are the devices that jobs of this service hold. A process there that this process cannot see (it looks from
    inside of a container) is taken for the job's.
    """
    with _nvml() as present:
        gpus = [_gpu(handle, held) for handle in _visible()] if present else []
    return gpus or [_cpu()]


def driver_version() -> str | None:
    """Of the GPUs' driver; None without one."""
    with _nvml() as present:
        return str(pynvml.nvmlSystemGetDriverVersion()) if present else None


@contextmanager
def _nvml() -> Iterator[bool]:
    """NVML for the length of the block; False where there is no driver. Other failures are raised: a machine whose
    GPUs do not answer must not pass for one that has none."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def _visible() -> Iterator[Any]:
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if allowed is None else [name.strip() for name in allowed.split(",")]
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if names is None or str(index) in names or pynvml.nvmlDeviceGetUUID(handle) in names:
            yield handle


def _gpu(handle: Any, held: Collection[str]) -> Report:
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    processes = []
    listed = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    for process in listed:
        visible = (PROC / str(process.pid)).exists()
        if _is_ours(process.pid) or (uuid in held and not visible):
            continue
        processes.append(Process(process.pid, _name(process.pid), process.usedGpuMemory or 0))
    if not listed and uuid not in held and memory.used > UNSEEN_BYTES:
        processes.append(Process(None, "unknown", memory.used))
    return Report(
        uuid=uuid,
        kind="cuda",
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=memory.total,
        memory_used_bytes=memory.used,
        foreign_processes=processes,
    )


def _is_ours(pid: int) -> bool:
    """Whether it is a supervisor's trainer, or a process that one started; `jenga train` has none."""
    with suppress(OSError):
        return f"{LEASE_FD_VARIABLE}=".encode() in (PROC / str(pid) / "environ").read_bytes()
    return False


def _name(pid: int) -> str:
    with suppress(OSError):
        return (PROC / str(pid) / "comm").read_text().strip()
    return "unknown"


def _cpu() -> Report:
    with suppress(OSError):
        machine = MACHINE_ID.read_text().strip()
        return _cpu_of(f"{machine} {platform.node()}")
    return _cpu_of(platform.node())


def _cpu_of(machine: str) -> Report:
    """The id is made of what stays the same while the machine, or the container, lives."""
    memory_bytes = host_memory_bytes()
    return Report(
        uuid=f"CPU-{hashlib.sha256(machine.encode()).hexdigest()[:32]}",
        kind="cpu",
        name=platform.processor() or platform.machine(),
        memory_bytes=memory_bytes,
        memory_used_bytes=memory_bytes - _available_bytes(),
    )


def host_memory_bytes() -> int:
    """Of this machine; where a cgroup limits this process, in a container or a service's slice, what it may use."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, host_memory.limit_bytes() or machine)


def _available_bytes() -> int:
    with suppress(OSError):
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0

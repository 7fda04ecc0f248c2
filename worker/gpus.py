"""The devices of this machine, and who trains on which.

A job gets a whole GPU. The claim on it is a `flock` on one file per GPU in the data folder; the trainer inherits the
open file, so the GPU stays taken while either it or its supervisor lives, and the kernel frees it when both are gone.
On a machine without GPUs there is one device, the CPU, which all jobs share.
"""

from __future__ import annotations

import csv
import fcntl
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from jenga_core.service.settings import Settings
from worker.stop import Stop

POLL_SECONDS = 1.0
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU."""

    uuid: str
    """`GPU-...`, or `cpu`."""

    name: str
    memory_bytes: int
    """The GPU's memory, or the machine's."""


@dataclass(frozen=True)
class Place:
    """Where a trainer may run."""

    device: Device
    environment: Mapping[str, str] = field(default_factory=dict)
    """What to add to the trainer's environment."""

    keep_open: Sequence[int] = ()
    """Descriptors that the trainer must inherit: the lock on its GPU."""


def inventory() -> list[Device]:
    """The GPUs that this process may use (CUDA_VISIBLE_DEVICES narrows the list), or else the CPU."""
    gpus = _gpus()
    if gpus:
        return gpus
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [Device("cpu", platform.processor() or platform.machine(), memory_bytes)]


@contextmanager
def reserve(settings: Settings, stop: Stop, devices: Sequence[Device] | None = None) -> Iterator[Place | None]:
    """A place for one trainer until the block ends. Waits for a free GPU; None when asked to stop meanwhile."""
    devices = inventory() if devices is None else devices
    if devices[0].uuid == "cpu":
        yield Place(devices[0])
        return
    folder = settings.folder("gpus")
    while True:
        for device in devices:
            descriptor = os.open(folder / f"{device.uuid}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if _locked(descriptor):
                    yield Place(device, {"CUDA_VISIBLE_DEVICES": device.uuid}, (descriptor,))
                    return
            finally:
                os.close(descriptor)
        if stop.wait(POLL_SECONDS):
            yield None
            return


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _gpus() -> list[Device]:
    if shutil.which(QUERY[0]) is None:
        return []
    asked = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode != 0:
        log.warning("nvidia-smi failed, so jobs run on the CPU: %s", (asked.stdout + asked.stderr).strip())
        return []
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = []
    for index, uuid, name, mebibytes in csv.reader(asked.stdout.splitlines(), skipinitialspace=True):
        if allowed is None or any(each.strip() in (index, uuid) for each in allowed.split(",")):
            found.append(Device(uuid, name, int(mebibytes) * 2**20))
    return found

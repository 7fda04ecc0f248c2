"""What to say, and to do, when memory ran out: measured against predicted, and the smallest change that would fit."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError, JengaError
from jenga_core.memory.estimate import estimate
from jenga_core.memory.fitting import smallest_change
from jenga_core.memory.model_shape import ModelShape
from jenga_core.service.db.models import Device, Job
from jenga_core.service.estimates.estimate import batch_size_of
from jenga_core.service.fleet import leases
from jenga_core.service.fleet.placement import host_room_bytes
from jenga_core.service.models import registry
from jenga_core.service.settings import Settings
from worker.protocol import ErrorMessage

GIB = 2**30


def explain(session: Session, settings: Settings, job: Job, told: ErrorMessage | None) -> str:
    """One sentence with the numbers; `told` is None when the kernel killed the trainer for want of host memory."""
    config, batch_size = JengaConfig.parse(job.config), batch_size_of(job.hyperparameters)
    if told is None:
        return (
            "the machine ran out of memory and the kernel killed the trainer; "
            "use a smaller jenga.context_length_tokens, batch_size or jenga.keep_fraction"
            + (", or leave jenga.offload out" if config.offload else "")
        )
    devices = select(Device).where(Device.uuid.in_(leases.held_by(session, job.id)), Device.kind == "cuda")
    capacity_bytes = min((device.memory_bytes for device in session.scalars(devices)), default=None)
    if capacity_bytes is None or told.peak_bytes is None:
        return told.message
    try:
        shape = ModelShape.from_folder(registry.folder_of(settings, registry.get(session, job.model)))
    except JengaError:  # the model is gone meanwhile; what the trainer told is still true
        return told.message
    predicted = estimate(shape, config, batch_size)
    room_bytes = host_room_bytes(session, gpus=job.gpus)
    less = min(capacity_bytes, predicted.expected_bytes - 1)
    change = smallest_change(shape, config, batch_size, less, host_capacity_bytes=room_bytes)
    return (
        f"out of memory: predicted {predicted.expected_bytes / GIB:.1f} GiB "
        f"({predicted.low_bytes / GIB:.1f} to {predicted.high_bytes / GIB:.1f}), measured "
        f"{told.peak_bytes / GIB:.1f} GiB when it failed, the GPU has {capacity_bytes / GIB:.1f} GiB; "
        + (f"{change} would need less" if change else "no setting of this model and context needs less")
        + f". {told.message}"
    )


def smaller(session: Session, settings: Settings, job: Job, told: ErrorMessage | None) -> dict[str, Any] | None:
    """Columns of the job to start with once more; None when the policy, an earlier retry or the config itself forbids
    it.

    What no longer fits a GPU may wait in the host's memory, if some host has room for it; when that ran out, it may
    not.
    """
    on_a_gpu = told is not None and told.peak_bytes is not None
    config = {"recompute": "none", "offload": False, **job.config}
    if job.oom_policy != "shrink" or job.shrunk or (on_a_gpu and config["offload"]):
        return None
    for offload in (True, False) if on_a_gpu else (False,):
        changed = {**config, "recompute": "full", "offload": offload}
        if changed == config:
            continue
        try:
            host_bytes = _host_bytes(session, settings, job, JengaConfig.parse(changed))
        except ConfigError:  # it drops out, and would not compute the same twice
            return None
        room_bytes = host_room_bytes(session, gpus=job.gpus, device_bytes=job.memory_bytes or 0)
        if room_bytes is None or host_bytes <= room_bytes:
            return {"config": changed, "host_bytes": host_bytes}
    return None


def _host_bytes(session: Session, settings: Settings, job: Job, config: JengaConfig) -> int:
    """What the job keeps in the host's memory under that config; 0 when its model is gone."""
    try:
        shape = ModelShape.from_folder(registry.folder_of(settings, registry.get(session, job.model)))
    except JengaError:
        return 0
    return estimate(shape, config, batch_size_of(job.hyperparameters)).host_bytes

"""What a job would be, before it is made: rows, tokens, steps, memory, devices that it fits on, time. Writes nothing.

Time comes from what is known: earlier jobs of the same model and method, on as many devices and of about the same
context, how fast they trained and how long they took before and after. Where there are none, nobody knows, and none is
given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jenga_core.config import JengaConfig
from jenga_core.errors import DataError
from jenga_core.memory import estimate as memory
from jenga_core.memory.estimate import MemoryEstimate
from jenga_core.memory.fitting import longest_context, smallest_change
from jenga_core.memory.model_shape import ModelShape
from jenga_core.service.db.models import Job, JobMetric
from jenga_core.service.estimates.rows import RowCounts
from jenga_core.service.fleet.plan import room_for_jobs
from jenga_core.service.fleet.repository import DeviceView, Fleet
from jenga_core.service.jobs.state import JobState

DEFAULT_BATCH_SIZE = 1
DEFAULT_EPOCHS = 3
EARLIER_JOBS = 5
STEPS_OF_EACH = 50
"""The newest, of which the median is taken."""


@dataclass(frozen=True)
class Setting:
    """Memory under the settings asked for, or under others to compare with."""

    name: str
    estimate: MemoryEstimate


@dataclass(frozen=True)
class Fit:
    """Whether the job fits a device."""

    device: DeviceView
    fits: bool
    longest_context_tokens: int
    """That would fit it with these settings."""


@dataclass(frozen=True)
class Seconds:
    """From the start of the job to its end."""

    low: float
    expected: float
    high: float


def batch_size_of(hyperparameters: Mapping[str, Any]) -> int:
    """Sequences in a micro-batch; "auto" as the trainer resolves it."""
    value = hyperparameters.get("batch_size", "auto")
    return DEFAULT_BATCH_SIZE if value == "auto" else int(value)


def steps_of(config: JengaConfig, hyperparameters: Mapping[str, Any], sequences: int, gpus: int = 1) -> int:
    """Optimizer steps, as finetuning/trainer.make_plan counts them; each of several GPUs takes a share of the data."""
    if config.max_steps is not None:
        return config.max_steps
    epochs = DEFAULT_EPOCHS if hyperparameters["n_epochs"] == "auto" else int(hyperparameters["n_epochs"])
    of_each_gpu = math.ceil(sequences / gpus)
    return epochs * math.ceil(of_each_gpu / (batch_size_of(hyperparameters) * config.gradient_accumulation_steps))


def settings_of(shape: ModelShape, config: JengaConfig, batch_size: int, device_kind: str) -> list[Setting]:
    """As asked, and what would be without the method or with everything computed again."""
    asked: dict[str, JengaConfig] = {"as asked": config}
    can_recompute = config.attention_group_tokens is None and config.lora.dropout == 0
    if config.recompute != "full" and can_recompute:
        asked["recompute full"] = config.model_copy(update={"recompute": "full"})
    if device_kind == "cuda" and not config.offload and can_recompute:
        asked["recompute full, offload"] = config.model_copy(update={"recompute": "full", "offload": True})
    if config.enabled:
        again = "" if config.recompute == "none" else f", recompute {config.recompute}"
        again += ", offload" if config.offload else ""
        asked[f"dense LoRA{again}"] = config.model_copy(update={"enabled": False})
    return [
        Setting(name, memory.estimate(shape, each, batch_size, device_kind=device_kind)) for name, each in asked.items()
    ]


def fits_of(shape: ModelShape, config: JengaConfig, batch_size: int, fleet: Fleet, gpus: int = 1) -> list[Fit]:
    """Every device of a worker that is online; what offload keeps must fit the memory of its host, too."""
    found = []
    for worker in fleet.workers:
        for device in worker.devices if worker.state == "online" else ():
            needed = memory.estimate(shape, config, batch_size, device_kind=device.kind)
            room_bytes = math.inf if worker.memory_bytes is None else room_for_jobs(worker.memory_bytes)
            longest = longest_context(shape, config, batch_size, device.memory_bytes, device.kind)
            fits = needed.device_bytes <= device.memory_bytes and gpus * needed.host_bytes <= room_bytes
            found.append(Fit(device, fits, longest))
    return found


def advice_of(shape: ModelShape, config: JengaConfig, batch_size: int, fits: Sequence[Fit]) -> str | None:
    """What to change when no GPU is large enough, in words; None when one is, or when there are none."""
    on_gpus = [fit for fit in fits if fit.device.kind == "cuda"]
    if not on_gpus or any(fit.fits for fit in on_gpus):
        return None
    largest = max(fit.device.memory_bytes for fit in on_gpus)
    change = smallest_change(shape, config, batch_size, largest)
    if change is None:
        return f"no setting makes this job fit the largest GPU here ({largest / 2**30:.0f} GiB); use a smaller model"
    return f"no GPU here is large enough; with {change} the job would fit the largest ({largest / 2**30:.0f} GiB)"


def seconds_of(
    session: Session,
    model: str,
    config: JengaConfig,
    hyperparameters: Mapping[str, Any],
    counts: RowCounts,
    gpus: int = 1,
) -> Seconds | None:
    """From the speed of the newest jobs that resemble this one; None when there are none."""
    speeds, around = _speeds_and_around(session, model, config, gpus)
    if not speeds or not around or not counts.sequences:
        return None
    sequences = gpus * batch_size_of(hyperparameters) * config.gradient_accumulation_steps
    of_step = sequences * counts.tokens / counts.sequences
    tokens = steps_of(config, hyperparameters, counts.sequences, gpus) * of_step
    slow, fast = speeds[0], speeds[-1]
    if len(speeds) > 1:
        slow, *_, fast = quantiles(speeds, n=10, method="inclusive")
    return Seconds(
        low=min(around) + tokens / fast,
        expected=median(around) + tokens / median(speeds),
        high=max(around) + tokens / slow,
    )


def require_sequences(counts: RowCounts, context_length_tokens: int) -> None:
    """Raise DataError when the trainer would find nothing to learn from."""
    if not counts.sequences:
        raise DataError(f"no row leaves a sequence with a label in {context_length_tokens} tokens")


def _speeds_and_around(session: Session, model: str, config: JengaConfig, gpus: int) -> tuple[list[float], list[float]]:
    """Of earlier jobs like this one, both ascending: tokens per second of steps, and the seconds that a job took beside
    its steps."""
    ended = select(Job).where(Job.state == JobState.SUCCEEDED, Job.model == model, Job.gpus == gpus)
    method = _method_of(config.model_dump(mode="json"))
    speeds: list[float] = []
    around: list[float] = []
    alike = 0
    for job in session.scalars(ended.order_by(Job.created_at.desc()).limit(10 * EARLIER_JOBS)):
        if _method_of(job.config) != method or alike == EARLIER_JOBS:
            continue
        if not 0.5 <= job.config["context_length_tokens"] / config.context_length_tokens <= 2:
            continue
        of_steps = (JobMetric.job_id == job.id, JobMetric.tokens_per_second > 0)
        newest = select(JobMetric.tokens_per_second).where(*of_steps).order_by(JobMetric.step.desc())
        speeds += [speed for speed in session.scalars(newest.limit(STEPS_OF_EACH)) if speed is not None]
        borders = select(func.min(JobMetric.created_at), func.max(JobMetric.created_at)).where(*of_steps)
        first_at, last_at = session.execute(borders).one()
        began_at, ended_at = job.started_at or 0.0, job.finished_at or 0.0
        if first_at is not None and first_at >= began_at:  # else it was interrupted
            around.append(ended_at - began_at - (last_at - first_at))
        alike += 1
    return sorted(speeds), sorted(around)


def _method_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a config decides most how long a step takes, and what comes before the first."""
    of_all = {"enabled": True, "recompute": "none", "offload": False, "attention_group_tokens": None, "fused": True}
    of_selection = ("scope", "by", "score", "keep_fraction", "entry_layer", "below_entry", "unselected")
    selection = config["selection"] if config["enabled"] else {}
    return (*(config.get(name, default) for name, default in of_all.items()), *map(selection.get, of_selection))

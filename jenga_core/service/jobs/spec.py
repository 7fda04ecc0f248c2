"""From what a caller asked to a job row: the checks that need more than the request itself.

Shapes and ranges were checked before (JengaConfig, the request's schema). Here is what depends on the installation:
does the model exist, is the file the team's and fit to train on, does the context fit the model, and the job some GPU
of the fleet. Nothing is written, so a request that is refused leaves no job.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.config import MAX_ROPE_FACTOR, JengaConfig
from jenga_core.errors import ConfigError, DataError, NotFoundError
from jenga_core.memory.estimate import MemoryEstimate, estimate
from jenga_core.memory.fitting import longest_context, smallest_change
from jenga_core.memory.model_shape import ModelShape
from jenga_core.patching.architectures import architecture_of, check_rope, check_targets
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import BaseModelEntry, Device, Job
from jenga_core.service.estimates.estimate import batch_size_of
from jenga_core.service.files import repository as files
from jenga_core.service.fleet.placement import host_room_bytes
from jenga_core.service.ids import new_id
from jenga_core.service.models import registry
from jenga_core.service.settings import Settings

GIB = 2**30
AUTO: Mapping[str, Any] = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
"""OpenAI's hyperparameters, left to the trainer."""


@dataclass(frozen=True)
class JobRequest:
    """What a caller asked for, each part valid by itself."""

    model: str
    training_file: str
    config: JengaConfig
    validation_file: str | None = None
    hyperparameters: Mapping[str, Any] | None = None
    """In their deprecated place, at the top."""

    method_hyperparameters: Mapping[str, Any] | None = None
    """In `method.supervised`."""

    suffix: str | None = None
    seed: int | None = None
    metadata: Mapping[str, str] | None = None
    priority: int = 0
    gpus: int = 1
    oom_policy: str = "fail"


def job_of(session: Session, team_id: str, request: JobRequest, settings: Settings | None = None) -> Job:
    """The row of the job, ready for `lifecycle.submit`. Without `settings` nothing is known of its memory.

    Raises NotFoundError (model, file), DataError (a file that cannot be trained on), ConfigError (settings that do not
    fit the model or the fleet, or contradict each other).
    """
    model, hyperparameters = resolve(session, request)
    needed = None
    if settings is not None:
        needed = _needed(session, settings, model, request, hyperparameters)
    _check_file(session, team_id, request.training_file, "training_file")
    if request.validation_file is not None:
        _check_file(session, team_id, request.validation_file, "validation_file")
    return Job(
        id=new_id("ftjob-"),
        team_id=team_id,
        model=model.id,
        training_file=request.training_file,
        validation_file=request.validation_file,
        suffix=request.suffix,
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        tags=dict(request.metadata) if request.metadata is not None else None,
        hyperparameters=hyperparameters,
        config=request.config.model_dump(mode="json"),
        priority=request.priority,
        gpus=request.gpus,
        oom_policy=request.oom_policy,
        memory_bytes=None if needed is None else needed.device_bytes,
        host_bytes=0 if needed is None else needed.host_bytes,
        result_files=[],
        created_at=database_now(),
    )


def resolve(session: Session, request: JobRequest) -> tuple[BaseModelEntry, dict[str, Any]]:
    """The base model and the hyperparameters, whatever the files hold.

    Raises NotFoundError (model) or ConfigError (settings that do not fit the model, or contradict each other).
    """
    if request.model.startswith("ft:"):
        raise NotFoundError(
            f"{request.model!r} is a fine-tuned model, which cannot be trained further; train its base model",
            code="model_not_found",
            param="model",
        )
    model = registry.get(session, request.model)
    _check_fits(model, request.config)
    return model, _one(request.method_hyperparameters, request.hyperparameters)


def warnings(job: Job) -> list[str]:
    """Settings of the job that another setting overrules, in words: nothing is skipped silently."""
    overruled = (("max_steps", "n_epochs"), ("learning_rate", "learning_rate_multiplier"))
    return [
        f"jenga.{ours}={job.config[ours]} overrules {theirs}={job.hyperparameters[theirs]}"
        for ours, theirs in overruled
        if job.config[ours] is not None and job.hyperparameters[theirs] != "auto"
    ]


def _check_fits(model: BaseModelEntry, config: JengaConfig) -> None:
    check_rope(model.model_type, config.rope)
    check_targets(model.model_type, config.lora.target_modules)
    own, wanted = model.context_length_tokens, config.context_length_tokens
    factor = config.rope.factor if config.rope else 1
    if wanted > own * factor:
        needed = math.ceil(wanted / own)
        advice = "lower it"
        if architecture_of(model.model_type).rope_types and needed <= MAX_ROPE_FACTOR:
            stretched = json.dumps({"type": "yarn", "factor": needed})
            advice = f"lower it, or stretch the positions with jenga.rope, e.g. {stretched}"
        elif architecture_of(model.model_type).rope_types:
            advice = f"stretched positions reach {own * MAX_ROPE_FACTOR} at most (jenga.rope.factor {MAX_ROPE_FACTOR})"
        raise ConfigError(
            f"jenga.context_length_tokens is {wanted}, but {model.id} takes {own} tokens"
            + (f" x {factor:g} (jenga.rope.factor)" if config.rope else "")
            + f"; {advice}",
            code="context_too_long",
            param="jenga.context_length_tokens",
        )
    entry, layers = config.selection.entry_layer, model.num_hidden_layers
    if entry is not None and entry >= layers:
        raise ConfigError(
            f"jenga.selection.entry_layer is {entry}, but {model.id} has {layers} layers, counted from 0; "
            f"give one below {layers}, or leave it out for three fifths of them",
            param="jenga.selection.entry_layer",
        )


def _needed(
    session: Session,
    settings: Settings,
    model: BaseModelEntry,
    request: JobRequest,
    hyperparameters: Mapping[str, Any],
) -> MemoryEstimate:
    """What a GPU must have for the job. Raises ConfigError when the fleet has devices, and none or not enough for it.

    Hosts that are away at the moment count: they may come back. A CPU's memory is everybody's: there a job is refused
    only if the least that it can need is more than all of it.
    """
    shape = ModelShape.from_folder(registry.folder_of(settings, model), parameters=model.parameters)
    batch_size = batch_size_of(hyperparameters)
    predicted = estimate(shape, request.config, batch_size)
    by_host: dict[str, list[Device]] = {}
    for device in session.scalars(select(Device)):
        by_host.setdefault(device.worker_id, []).append(device)
    most = max(map(len, by_host.values()), default=request.gpus)
    if most < request.gpus:
        raise ConfigError(
            f"jenga.gpus is {request.gpus}, but no host of the fleet has more than {most}; ask for fewer",
            param="jenga.gpus",
        )
    devices = [device for host in by_host.values() if len(host) >= request.gpus for device in host]
    largest_gpu, largest_cpu = (
        max((device.memory_bytes for device in devices if device.kind == kind), default=0) for kind in ("cuda", "cpu")
    )
    on_cpu = estimate(shape, request.config, batch_size, device_kind="cpu")
    if not devices or predicted.device_bytes <= largest_gpu or (largest_cpu and on_cpu.low_bytes <= largest_cpu):
        if devices and predicted.device_bytes <= largest_gpu:
            _check_host(session, request.gpus, predicted)
        return predicted
    kind, name, largest = ("cuda", "GPU", largest_gpu) if largest_gpu else ("cpu", "CPU", largest_cpu)
    needed = predicted if largest_gpu else on_cpu
    longest = longest_context(shape, request.config, batch_size, largest, kind)
    room_bytes = host_room_bytes(session, gpus=request.gpus)
    change = smallest_change(shape, request.config, batch_size, largest, kind, room_bytes)
    raise ConfigError(
        f"the job needs about {needed.device_bytes / GIB:.1f} GiB of {name} memory ({needed.low_bytes / GIB:.1f} to "
        f"{needed.high_bytes / GIB:.1f} GiB for training itself), and the largest {name} for it has "
        f"{largest / GIB:.1f} GiB; with these settings "
        + (f"a context of up to {longest} tokens fits" if longest else "no context fits")
        + (f"; at {request.config.context_length_tokens} tokens {change} would fit" if change else ""),
        code="does_not_fit",
        param="jenga.context_length_tokens",
    )


def _check_host(session: Session, gpus: int, needed: MemoryEstimate) -> None:
    """Raise ConfigError when every host that has the GPUs has less memory than the job keeps there."""
    room_bytes = host_room_bytes(session, gpus=gpus, device_bytes=needed.device_bytes)
    if room_bytes is None or needed.host_bytes <= room_bytes:
        return
    raise ConfigError(
        f"with jenga.offload the job keeps about {gpus * needed.host_bytes / GIB:.1f} GiB in its host's memory, and "
        f"jobs may keep {gpus * room_bytes / GIB:.1f} GiB in that of the largest host with GPUs for it; leave "
        "jenga.offload out, or use fewer tokens",
        code="does_not_fit",
        param="jenga.offload",
    )


def _one(in_method: Mapping[str, Any] | None, at_top: Mapping[str, Any] | None) -> dict[str, Any]:
    """The hyperparameters, given in either place or, alike, in both."""
    first, second = ({**AUTO, **given} if given is not None else None for given in (in_method, at_top))
    if first is not None and second is not None and first != second:
        raise ConfigError(
            f"hyperparameters ({second}) differ from method.supervised.hyperparameters ({first}); give one of them, "
            "preferably in method",
            code="conflicting_hyperparameters",
            param="hyperparameters",
        )
    return first or second or dict(AUTO)


def _check_file(session: Session, team_id: str, file_id: str, param: str) -> None:
    file = files.get(session, team_id, file_id, param=param, lock="shared")
    if file.purpose != files.UPLOAD_PURPOSE:
        problem = f"has the purpose {file.purpose!r}; a file to train on is uploaded with {files.UPLOAD_PURPOSE!r}"
    elif file.status != "processed":
        problem = f"cannot be used ({file.status_details or file.status}); mend it and upload it again"
    else:
        return
    raise DataError(f"File {file_id} {problem}", code=f"invalid_{param}", param=param)

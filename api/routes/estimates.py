"""A dry run of `POST /v1/fine_tuning/jobs`: the same body, and what would become of it."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from api.dependencies import CurrentDatabase, CurrentFiles, CurrentPrincipal, CurrentSettings
from api.schemas.create_job import CreateJob
from api.schemas.estimates import EstimateObject
from jenga_core.errors import ConfigError, DataError
from jenga_core.memory.model_shape import ModelShape
from jenga_core.service.estimates import estimate
from jenga_core.service.estimates.rows import count_file
from jenga_core.service.estimates.tokens import TokenCounter
from jenga_core.service.files import repository as files
from jenga_core.service.fleet import repository as fleet
from jenga_core.service.jobs import spec
from jenga_core.service.models import registry

router = APIRouter(prefix="/v1/fine_tuning/estimates", tags=["fine-tuning"])


@router.post("")
def create_estimate(
    body: CreateJob,
    principal: CurrentPrincipal,
    database: CurrentDatabase,
    store: CurrentFiles,
    settings: CurrentSettings,
) -> EstimateObject:
    """What a job of this body would be: wrong rows, tokens, steps, memory, devices that it fits on, and time.

    Nothing is written. Tokens are counted with the model's own tokenizer, so this takes about a second for 10 MB.
    """
    request = body.to_request()
    with database.reading() as session:
        model, hyperparameters = spec.resolve(session, request)
        names = [request.training_file, *([request.validation_file] if request.validation_file else [])]
        for param, file_id in zip(("training_file", "validation_file"), names, strict=False):
            files.get(session, principal.team_id, file_id, param=param)
        problem = _problem(lambda: spec.job_of(session, principal.team_id, request, settings=settings))
        view = fleet.fleet(session)
    config, folder = request.config, registry.folder_of(settings, model)
    counts = count_file(
        store.path(request.training_file), TokenCounter(folder), context_length_tokens=config.context_length_tokens
    )
    problem = problem or _problem(lambda: estimate.require_sequences(counts, config.context_length_tokens))
    errors = counts.errors or ([(0, problem)] if problem else [])
    shape = ModelShape.from_folder(folder, parameters=model.parameters)
    batch_size = estimate.batch_size_of(hyperparameters)
    fits = estimate.fits_of(shape, config, batch_size, view, request.gpus)
    kind = "cpu" if fits and all(fit.device.kind == "cpu" for fit in fits) else "cuda"
    with database.reading() as session:
        seconds = estimate.seconds_of(session, model.id, config, hyperparameters, counts, request.gpus)
    return EstimateObject.of(
        counts,
        errors,
        steps=estimate.steps_of(config, hyperparameters, counts.sequences, request.gpus),
        seconds=seconds,
        settings=estimate.settings_of(shape, config, batch_size, kind),
        fits=fits,
        advice=estimate.advice_of(shape, config, batch_size, fits),
    )


def _problem(check: Callable[[], object]) -> str | None:
    """Why the request would be refused; None when it would not."""
    try:
        check()
    except (ConfigError, DataError) as error:
        return error.message
    return None

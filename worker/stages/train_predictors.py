"""Where block scores come from: predictors that an earlier job of the team left, new ones, or the attention itself.

    selection.score   stored predictors fit   none do, on a GPU   none do, on a CPU
    predicted         use them                train and use       train and use
    auto              use them                train and use       exact scores
    any other         -                       -                   -

`auto` falls back on exact scores, and says so, when predictors turn out to recall too little. A job that goes on from a
checkpoint uses what it used before: the predictors that lie in it, or none.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from jenga_core.finetuning.predictors import train_predictors
from jenga_core.prediction import store
from jenga_core.prediction.store import PredictorsMismatch, Stored
from worker import resume_state
from worker.protocol import PredictorMessage
from worker.training_job import TrainingJob


def run(job: TrainingJob) -> None:
    """Leaves predictors, in the job and in its handle, if they are what scores come from."""
    assert job.handle is not None and job.model is not None and job.training is not None
    config = job.spec.config
    asked = config.selection.score
    if not config.enabled or asked not in ("auto", "predicted"):
        return
    if job.resume_from is not None:
        resume_state.load_predictors(job, job.resume_from)
        return
    settings = store.settings_of(config, job.handle.selecting_layers)
    folder = job.spec.predictors_folder / store.folder_name(settings)
    stored = _stored(job, folder, settings)
    reused = stored is not None
    if stored is None:
        if asked == "auto" and job.device.type != "cuda":
            job.reporter.event("Block scores are exact: no predictors fit, and on a CPU they are trained when asked")
            return
        if asked == "auto" and len(job.training.sequences) < 2:
            job.warn("Block scores are exact: predictors cannot be trained on a single sequence")
            return
        stored = _train(job, folder, settings)
    report = report_on(stored, job.model)
    message = PredictorMessage(folder=folder.name, reused=reused, settings=settings, report=report)
    job.reporter.send(message)
    if stored.lowest_recall < config.predictor.min_recall:
        consequence = "block scores are exact" if asked == "auto" else "they are used all the same, as asked"
        job.warn(
            f"Predictors recall {stored.lowest_recall:.1%} of the blocks that exact scores choose, less than "
            f"predictor.min_recall {config.predictor.min_recall:.1%}: {consequence}"
        )
        if asked == "auto":
            return
    job.handle.use_predictors(stored.predictors)
    job.predictors = stored
    job.reporter.event(
        f"Block scores are predicted, by {'stored' if reused else 'new'} predictors of "
        f"{report['parameter_fraction']:.2%} of the model's size; recall on held-out text "
        + ", ".join(
            f"{entry['recall']:.1%} in layer {layer} (the last blocks: {entry['recent']:.1%}, chance: "
            f"{entry['chance']:.1%})"
            for layer, entry in report["layers"].items()
        ),
        data=report,
    )


def report_on(stored: Stored, model: nn.Module) -> dict[str, Any]:
    """Sizes, and recall, precision and more by layer."""
    parameters = stored.predictors.num_parameters
    base = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return {
        "parameters": parameters,
        "parameter_fraction": parameters / base,
        "layers": {str(layer): report.as_dict() for layer, report in stored.reports.items()},
    }


def _stored(job: TrainingJob, folder: Path, settings: dict[str, Any]) -> Stored | None:
    """Those in the folder, if there are some and they fit."""
    assert job.handle is not None
    if not folder.exists():
        return None
    hidden_size = job.handle.parts.causal_lm.config.hidden_size
    try:
        return store.load(folder, fingerprint=job.spec.fingerprint, settings=settings, hidden_size=hidden_size)
    except PredictorsMismatch as error:
        job.warn(f"Stored predictors are not used: {error.message}")
        return None


def _train(job: TrainingJob, folder: Path, settings: dict[str, Any]) -> Stored:
    """Train, and put them into the folder in one move."""
    assert job.handle is not None and job.training is not None
    job.reporter.event(f"Training predictors for the layers that select, {settings['layers']}")
    predictors, reports = train_predictors(
        job.handle, job.training.sequences, job.collate(), seed=job.spec.seed, tick=job.leave_if_asked
    )
    stored = Stored(predictors, job.spec.fingerprint, settings, reports)
    made = job.folder / "predictors.unfinished"  # `jenga train` wants them in job.folder / "predictors"
    shutil.rmtree(made, ignore_errors=True)
    store.save(made, stored)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # unusable ones, or those of a job that ran beside this one
    os.replace(made, folder)
    return stored

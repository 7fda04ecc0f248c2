"""What a checkpoint holds beside the Trainer's own state, so that a job goes on exactly as it was.

    calibration.json   the held-out loss from before training, and the first batch's memory: not measured again
    thresholds.json    where layers choose by threshold
    predictors/        where block scores are predicted; other jobs of the team may replace the stored ones meanwhile

A random selection draws from torch's generator, whose state the Trainer saves.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from jenga_core.elimination.thresholds import Thresholds
from jenga_core.finetuning.checkpoints import STATE_FOLDER
from jenga_core.finetuning.dense_reference import DenseReference
from jenga_core.finetuning.evaluation import HeldOut
from jenga_core.prediction import store
from worker.training_job import TrainingJob

CALIBRATION, THRESHOLDS, PREDICTORS = "calibration.json", "thresholds.json", "predictors"


def save(job: TrainingJob, folder: Path) -> None:
    """Write it into the state folder of a checkpoint in the making."""
    assert job.handle is not None
    held_out = None if job.held_out_before is None else asdict(job.held_out_before)
    measured = {
        "activation_bytes": job.activation_bytes,
        "dense": None if job.dense is None else asdict(job.dense),
        "memory_depends_on": _memory_depends_on(job),
        "held_out_before": held_out,
        "warnings": job.warnings,
    }
    (folder / CALIBRATION).write_text(json.dumps(measured, indent=1) + "\n")
    if job.handle.thresholds is not None:
        job.handle.thresholds.save(folder / THRESHOLDS)
    if job.predictors is not None:
        store.save(folder / PREDICTORS, job.predictors)


def load_calibration(job: TrainingJob, checkpoint: Path) -> None:
    """Leaves what was measured before the checkpoint, and the handle's thresholds."""
    assert job.handle is not None
    folder = checkpoint / STATE_FOLDER
    measured = json.loads((folder / CALIBRATION).read_text())
    if measured.get("memory_depends_on") == _memory_depends_on(job) and measured["dense"] is not None:
        job.activation_bytes, job.dense = measured["activation_bytes"], DenseReference(**measured["dense"])
    job.held_out_before = None if measured["held_out_before"] is None else HeldOut(**measured["held_out_before"])
    job.warnings += [each for each in measured["warnings"] if each not in job.warnings]
    if (folder / THRESHOLDS).exists():
        job.handle.thresholds = Thresholds.load(folder / THRESHOLDS)


def _memory_depends_on(job: TrainingJob) -> dict[str, object]:
    """What of a job's settings may change between two attempts."""
    return {"recompute": job.spec.config.recompute, "offload": job.spec.config.offload}


def load_predictors(job: TrainingJob, checkpoint: Path) -> None:
    """Leaves predictors, in the job and in its handle, if they are what scores came from."""
    assert job.handle is not None
    folder = checkpoint / STATE_FOLDER / PREDICTORS
    if folder.exists():
        job.predictors = store.load(folder, fingerprint=job.spec.fingerprint)
        job.handle.use_predictors(job.predictors.predictors)

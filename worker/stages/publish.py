"""The adapter, its archive, the metrics table and the report: everything under `output/`, then the result message."""

from __future__ import annotations

import csv
import shutil
from dataclasses import asdict
from typing import Any

from jenga_core.finetuning.adapters import pack_adapter, save_adapter
from jenga_core.finetuning.evaluation import HeldOut
from worker.protocol import ResultMessage
from worker.stages.train_predictors import report_on
from worker.training_job import TrainingJob


def run(job: TrainingJob) -> None:
    """Writes the files and sends the result; nothing is left to do after it."""
    assert job.model is not None
    shutil.rmtree(job.output_folder, ignore_errors=True)
    job.output_folder.mkdir(parents=True)
    save_adapter(job.model, job.output_folder / "adapter", base_model_name=job.spec.model_name)
    pack_adapter(job.output_folder / "adapter", job.output_folder / "adapter.tar.gz")
    _write_metrics(job)
    job.reporter.send(ResultMessage(report=_report(job)))


def _write_metrics(job: TrainingJob) -> None:
    assert job.finished is not None
    rows: dict[int, dict[str, Any]] = {}
    for entry in job.finished.history:
        step = int(entry["step"])
        rows[step] = {"step": step, "train_loss": entry["loss"], "learning_rate": entry["learning_rate"]}
    for step, held_out in ((0, job.held_out_before), (job.finished.stopped_at_step, job.held_out_after)):
        if held_out is not None:
            rows.setdefault(step, {"step": step})["valid_loss"] = held_out.loss
    with (job.output_folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train_loss", "valid_loss", "learning_rate"])
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))


def _report(job: TrainingJob) -> dict[str, Any]:
    assert job.handle is not None and job.finished is not None and job.training is not None and job.model is not None
    report = job.handle.report()
    return {
        "enabled": report.enabled,
        "score": report.score if report.enabled else None,
        "entry_layer": report.entry_layer if report.enabled else None,
        "predictors": None if job.predictors is None else report_on(job.predictors, job.model),
        "kept_fraction": list(report.kept_fraction),
        "thresholds": None if job.handle.thresholds is None else dict(job.handle.thresholds.by_layer),
        "activation_bytes": job.activation_bytes,
        "dense_activation_bytes": None if job.dense is None else job.dense.activation_bytes,
        "held_out_before": _held_out(job.held_out_before),
        "held_out_after": _held_out(job.held_out_after),
        "training_rows": job.training.rows,
        "training_tokens": job.training.tokens,
        "trained_tokens": job.finished.trained_tokens,
        "warnings": job.warnings,
    }


def _held_out(held_out: HeldOut | None) -> dict[str, Any] | None:
    return None if held_out is None else {**asdict(held_out), "perplexity": held_out.perplexity}

"""Rows for the status pages to show: a running job half way, one that succeeded, one that failed, one waiting."""

from __future__ import annotations

import math
import time
from typing import Any

from sqlalchemy.orm import Session

from jenga_core.config import JengaConfig
from jenga_core.service.db.models import (
    BaseModelEntry,
    Device,
    DeviceLease,
    Job,
    JobEvent,
    JobMemory,
    JobMetric,
    JobSelection,
    PredictorEntry,
    StoredFile,
    Team,
    Worker,
)
from jenga_core.service.files.store import FileStore
from jenga_core.service.settings import Settings

RUNNING, SUCCEEDED, FAILED, QUEUED = (
    f"ftjob-{name}0000000000000000" for name in ("running", "success", "failing", "waiting")
)
HOSTILE = "<img src=x onerror=alert(1)>"
"""Text that must arrive on the page as text."""

ROWS = b'{"text": "the first document"}\n{"text": "the second document"}\n'
FILES = (
    ("training", "train.jsonl", "fine-tune", len(ROWS)),
    ("heldout", "heldout.jsonl", "fine-tune", len(ROWS)),
    ("metrics", "metrics.csv", "fine-tune-results", 2_113),
    ("adapter", "adapter.tar.gz", "fine-tune-results", 1_873_211),
)
"""Name, file name, purpose, size; only the first two have bytes (`write_files`)."""

LAYERS, BLOCKS = 30, 16
ENTRY_LAYER = 20
"""Not three fifths of them, so that a page that guesses is found out."""

PREDICTOR_LAYERS = {
    "20": {"recall": 0.917, "precision": 0.92, "chance": 0.4},
    "21": {"recall": 0.96, "precision": 0.95, "chance": 0.4},
}


def seed(session: Session, team: Team) -> None:
    """Insert one job of each kind, with everything that the job page reads."""
    now = time.time()
    session.add(
        BaseModelEntry(
            id="smollm2-135m",
            source="test",
            folder="smollm2-135m",
            model_type="llama",
            num_hidden_layers=LAYERS,
            context_length_tokens=8192,
            parameters=134_515_008,
            fingerprint="0" * 64,
            created_at=now,
        )
    )
    for name, filename, purpose, size in FILES:
        session.add(
            StoredFile(
                id=f"file-{name}",
                team_id=team.id,
                purpose=purpose,
                filename=filename,
                bytes=size,
                status="processed",
                created_at=now,
            )
        )
    session.flush()
    running = _job(
        RUNNING, team, now - 80, state="running", stage="finetune", step=7, total_steps=12, attempt=1,
        started_at=now - 70,
    )  # fmt: skip
    succeeded = _job(
        SUCCEEDED,
        team,
        now - 4000,
        state="succeeded",
        stage="publish",
        step=12,
        total_steps=12,
        attempt=1,
        started_at=now - 3829,
        finished_at=now - 3800,
        gpu_seconds=29.0,
        fine_tuned_model="ft:smollm2-135m:default::success",
        result_files=["file-metrics", "file-adapter"],
        report={
            "score": "exact",
            "entry_layer": ENTRY_LAYER,
            "kept_fraction": [0.375] * LAYERS,
            "activation_bytes": 120_700_000,
            "held_out_before": {"loss": 2.5113, "tokens": 8_190},
            "held_out_after": {"loss": 2.2047, "tokens": 8_190},
            "warnings": ["2 rows were cut to 2048 tokens"],
            "thresholds": {"20": 0.0125, "21": 0.02},
            "predictors": {"layers": PREDICTOR_LAYERS},
        },
    )
    error = {"code": "user_error", "message": f"Row 7 could not be read: {HOSTILE}", "param": None}
    failed = _job(
        FAILED, team, now - 90_000, state="failed", stage="prepare", attempt=1, error=error,
        started_at=now - 89_998, finished_at=now - 89_990, gpu_seconds=8.0,
    )  # fmt: skip
    queued = _job(QUEUED, team, now - 5, state="queued", stage="validate")
    session.add_all([running, succeeded, failed, queued])
    session.flush()
    for job in (running, succeeded):
        _training(session, job)
    _predictor_and_device(session, team, now)
    add_event(session, failed, 1, "error", error["message"])
    add_event(session, queued, 1, "info", f"Created fine-tuning job: {QUEUED}")


def write_files(settings: Settings) -> None:
    """The bytes of the files that jobs train on."""
    for name in ("training", "heldout"):
        with FileStore(settings).writing(f"file-{name}") as file:
            file.write(ROWS)


def _predictor_and_device(session: Session, team: Team, now: float) -> None:
    session.add(
        PredictorEntry(
            id="predictor-1",
            team_id=team.id,
            base_model="smollm2-135m",
            fingerprint="0" * 64,
            folder="predictor-1",
            job_id=SUCCEEDED,
            settings={"block_tokens": 64},
            report={"parameters": 190_000, "parameter_fraction": 0.0014, "layers": PREDICTOR_LAYERS},
            created_at=now,
        )
    )
    session.add(Worker(id="worker-1", host="here", pid=1, versions={"torch": "2"}, started_at=now, heartbeat_at=now))
    session.flush()
    memory = {"memory_bytes": 80 * 2**30, "memory_used_bytes": 31 * 2**30}
    foreign = [{"pid": 77, "name": "python", "memory_bytes": 10**9}]
    session.add(
        Device(uuid="GPU-1", worker_id="worker-1", kind="cuda", name="A GPU", foreign_processes=foreign, **memory)
    )
    session.flush()
    session.add(DeviceLease(device_uuid="GPU-1", job_id=RUNNING, token="-", since=now))


def _job(job_id: str, team: Team, created_at: float, **values: Any) -> Job:
    config = JengaConfig.preset("jenga", keep_fraction=0.4, max_steps=12, context_length_tokens=1024)
    defaults: dict[str, Any] = {
        "model": "smollm2-135m",
        "training_file": "file-training",
        "validation_file": "file-heldout",
        "seed": 42,
        "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0},
        "config": config.model_dump(mode="json"),
        "result_files": [],
    }
    return Job(id=job_id, team_id=team.id, created_at=created_at, **{**defaults, **values})


def _training(session: Session, job: Job) -> None:
    for step in range(job.step + 1):
        add_step(session, job.id, step, job.created_at + 5 * step)
    dense = {"phase": "dense_reference", "activation_bytes": 640_300_000, "peak_bytes": 2_450_000_000}
    ours = {"phase": "finetune", "activation_bytes": 120_700_000, "peak_bytes": 1_780_000_000}
    for row in (dense, ours):
        states = 571_000_000
        session.add(
            JobMemory(
                job_id=job.id,
                states_bytes=states,
                predictor_bytes=0,
                other_bytes=row["peak_bytes"] - row["activation_bytes"] - states,
                device="cpu",
                created_at=job.created_at,
                **row,
            )
        )
    messages = ("Created fine-tuning job", "Stage prepare", "Stage finetune", "2 rows were cut to 2048 tokens")
    for seq, message in enumerate(messages, start=1):
        add_event(session, job, seq, "warn" if "cut" in message else "info", message)


def add_step(session: Session, job_id: str, step: int, created_at: float) -> None:
    """Numbers and selection of one optimizer step."""
    session.add(
        JobMetric(
            job_id=job_id,
            step=step,
            train_loss=2.2 + 0.4 * math.exp(-step / 4) + 0.05 * math.sin(5 * step) if step else None,
            valid_loss=2.2 + 0.3 * math.exp(-step / 6) if step % 4 == 0 else None,
            learning_rate=2e-4 if step else None,
            tokens_per_second=431.0 if step else None,
            created_at=created_at,
        )
    )
    if step:
        blocks = sorted({0, BLOCKS - 1, *((step * k + k * k) % BLOCKS for k in range(2, 7))})
        session.add(
            JobSelection(
                job_id=job_id,
                step=step,
                num_blocks=BLOCKS,
                kept_fraction={"layers": [len(blocks) / BLOCKS] * LAYERS},
                kept_blocks={
                    "entry_layer": ENTRY_LAYER,
                    "spans": [{"first_layer": 0, "last_layer": LAYERS - 1, "blocks": blocks}],
                },
                created_at=created_at,
            )
        )


def add_event(session: Session, job: Job, seq: int, level: str, message: str) -> None:
    """The next event of a job."""
    job.event_seq = seq
    session.add(
        JobEvent(
            job_id=job.id, seq=seq, level=level, type="message", message=message, created_at=job.created_at + 10 * seq
        )
    )

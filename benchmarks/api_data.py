"""A database as it is after a year: one team with thousands of jobs, their events, metrics and memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert

from jenga_core.config import JengaConfig
from jenga_core.service.accounts.keys import create_key
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.models import (
    BaseModelEntry,
    Job,
    JobEvent,
    JobMemory,
    JobMetric,
    JobRequest,
    StoredFile,
)
from jenga_core.service.db.session import Database
from jenga_core.service.ids import new_id
from jenga_core.service.jobs.state import JobStage, JobState
from jenga_core.service.settings import Settings
from migrations.upgrade import upgrade

METRICS_OF_A_JOB = 20
METRICS_OF_THE_LONG_JOB = 100_000
QUEUED, RUNNING = 50, 4
"""Of the newest jobs; the others have ended."""

BATCH = 5_000
BEGAN = 1.75e9


@dataclass(frozen=True)
class Filled:
    """What to ask for."""

    key: str
    job_ids: list[str]
    """Oldest first."""

    long_job_id: str


def fill(settings: Settings, *, jobs: int, events: int) -> Filled:
    """Migrate and fill the settings' database."""
    upgrade(settings)
    database = Database(settings.database)
    config = JengaConfig.preset("jenga").model_dump(mode="json")
    hyperparameters = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}
    ids = [new_id("ftjob-") for _ in range(jobs)]
    per_job = events // jobs
    try:
        with database.writing() as session:
            team = create_team(session, "bench")
            key = create_key(session, team, "bench", pepper=settings.pepper)
            files = [new_id("file-") for _ in range(200)]
            model = {"id": "tiny", "source": "bench", "folder": "tiny", "model_type": "llama", "created_at": BEGAN}
            shape = {"num_hidden_layers": 30, "context_length_tokens": 2048, "parameters": 10**8}
            session.add(BaseModelEntry(**model, **shape, fingerprint="0" * 64))
            about = {"team_id": team.id, "purpose": "fine-tune", "filename": "train.jsonl", "status": "processed"}
            session.execute(
                insert(StoredFile),
                [{"id": each, **about, "bytes": 10**6, "rows": 100, "created_at": BEGAN} for each in files],
            )

            def job_row(number: int, job_id: str) -> dict[str, Any]:
                state = JobState.SUCCEEDED if number % 10 else JobState.FAILED
                if number >= jobs - QUEUED:
                    state = JobState.QUEUED
                elif number >= jobs - QUEUED - RUNNING:
                    state = JobState.RUNNING
                return {
                    "id": job_id,
                    "team_id": team.id,
                    "model": "tiny",
                    "training_file": files[number % len(files)],
                    "seed": number,
                    "tags": {"project": f"p{number % 50}", "owner": "bench"},
                    "hyperparameters": hyperparameters,
                    "config": config,
                    "state": state,
                    "stage": JobStage.PUBLISH if state.is_terminal else JobStage.VALIDATE,
                    "attempt": 1,
                    "step": 0 if state is JobState.QUEUED else METRICS_OF_A_JOB,
                    "total_steps": METRICS_OF_A_JOB,
                    "result_files": [],
                    "event_seq": per_job,
                    "created_at": BEGAN + 60.0 * number,
                    "started_at": BEGAN + 60.0 * number,
                    "finished_at": BEGAN + 60.0 * number + 50 if state.is_terminal else None,
                    "error": {"code": "oom", "message": "out of memory", "param": None},
                }

            _insert(session, Job, itertools.starmap(job_row, enumerate(ids)))
            request = {"key_id": key.split("_")[1], "body_sha256": "0" * 64, "created_at": BEGAN}
            _insert(session, JobRequest, ({"job_id": each, **request} for each in ids))
            _insert(session, JobMemory, _memory(ids))
            _insert(session, JobMetric, _metrics(ids))
        for some in _chunks(ids, max(1, 200_000 // per_job)):
            with database.writing() as session:
                _insert(session, JobEvent, _events(some, per_job))
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")
    finally:
        database.dispose()
    return Filled(key, ids, ids[0])


def _events(ids: Iterable[str], per_job: int) -> Iterator[dict[str, Any]]:
    for job_id in ids:
        for seq in range(1, per_job + 1):
            yield {
                "job_id": job_id,
                "seq": seq,
                "level": "info",
                "type": "metrics",
                "message": f"Step {seq}/{per_job}: training loss=2.31",
                "data": {"step": seq, "train_loss": 2.31, "learning_rate": 2e-4, "total_steps": per_job},
                "created_at": BEGAN + seq,
            }


def _metrics(ids: list[str]) -> Iterator[dict[str, Any]]:
    for number, job_id in enumerate(ids):
        for step in range(1 + (METRICS_OF_THE_LONG_JOB if number == 0 else METRICS_OF_A_JOB)):
            yield {
                "job_id": job_id,
                "step": step,
                "train_loss": 2.5 - step / 1e6,
                "valid_loss": 2.6 if step == 0 else None,
                "learning_rate": 2e-4,
                "tokens_per_second": 5000.0,
                "created_at": BEGAN + step,
            }


def _memory(ids: list[str]) -> Iterator[dict[str, Any]]:
    kinds = ("states_bytes", "activation_bytes", "predictor_bytes", "other_bytes", "peak_bytes")
    for job_id in ids:
        for phase in ("dense_reference", "finetune"):
            yield {
                "job_id": job_id,
                "phase": phase,
                "device": "cuda",
                "created_at": BEGAN,
                **dict.fromkeys(kinds, 2**30),
            }


def _insert(session: Any, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    for some in _chunks(rows, BATCH):
        session.execute(insert(table), some)


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rows = iter(rows)
    while some := list(itertools.islice(rows, size)):
        yield some

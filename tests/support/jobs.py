"""Rows that tests start from: a team, a base model, a training file, and jobs on them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from jenga_core.config import JengaConfig
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import BaseModelEntry, Job, StoredFile
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.ids import new_id
from jenga_core.service.jobs import lifecycle
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings

MODEL_CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Seed:
    """Ids of what a job needs."""

    team_id: str
    model: str
    training_file: str


def seed(database: Database, settings: Settings, *, rows: bytes = b'{"text": "hello"}\n') -> Seed:
    """A team, a model entry (a folder with a config but no weights) and a stored training file."""
    file_id = new_id("file-")
    with FileStore(settings).writing(file_id) as file:
        file.write(rows)
    model = f"tiny-{secrets.token_hex(3)}"
    (settings.folder("models", model) / "config.json").write_text(json.dumps(MODEL_CONFIG))
    with database.writing() as session:
        team = create_team(session, f"team-{secrets.token_hex(3)}")
        session.add(
            BaseModelEntry(
                id=model,
                source="test",
                folder=model,
                model_type="llama",
                num_hidden_layers=2,
                context_length_tokens=256,
                parameters=1000,
                fingerprint="0" * 64,
                created_at=database_now(),
            )
        )
        session.add(
            StoredFile(
                id=file_id,
                team_id=team.id,
                purpose="fine-tune",
                filename="train.jsonl",
                bytes=len(rows),
                rows=rows.count(b"\n"),
                status="processed",
                created_at=database_now(),
            )
        )
        return Seed(team.id, model, file_id)


def new_job(seeded: Seed, **columns: Any) -> Job:
    """A job row that is not in a session yet."""
    values: dict[str, Any] = {
        "id": new_id("ftjob-"),
        "team_id": seeded.team_id,
        "model": seeded.model,
        "training_file": seeded.training_file,
        "seed": 1,
        "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"},
        "config": JengaConfig.preset("jenga", max_steps=3).model_dump(mode="json"),
        "created_at": database_now(),
    }
    return Job(**{**values, **columns})


def submit_job(database: Database, seeded: Seed, **columns: Any) -> str:
    """Submit a job as the API does; return its id."""
    with database.writing() as session:
        return lifecycle.submit(session, new_job(seeded, **columns)).id


def force(
    database: Database, job_id: str, state: JobState, *, token: str | None = None, lease: float = 60, **columns: Any
) -> None:
    """Put a job into a state behind the lifecycle's back, held by `token` for `lease` seconds when one is given."""
    with database.writing() as session:
        job = session.get_one(Job, job_id)
        job.state, job.lease_token = state, token
        job.lease_expires_at = database_now() + lease if token else None
        for name, value in columns.items():
            setattr(job, name, value)

"""The API in this process, on SQLite and on PostgreSQL, with a team, its key, a model and a training file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from api.app import create_app
from jenga_core.service.accounts.keys import create_key
from jenga_core.service.db.models import Job, Team
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import queue
from jenga_core.service.settings import Settings
from tests.support.jobs import Seed, seed

ROW = b'{"text": "a document"}\n'
SMALL: dict[str, Any] = {"context_length_tokens": 128, "max_steps": 3}
"""A `jenga` object that fits the seeded model, which takes 256 tokens."""


@dataclass(frozen=True)
class Api:
    """A client that sends the team's key, and what its jobs can be made of."""

    app: FastAPI
    client: TestClient
    database: Database
    settings: Settings
    seeded: Seed
    key: str

    def anonymous(self) -> TestClient:
        """A client without a key; a failing route answers 500 instead of raising here."""
        return TestClient(self.app, raise_server_exceptions=False)

    def upload(self, rows: bytes = ROW, *, purpose: str = "fine-tune", filename: str = "train.jsonl") -> Any:
        """POST /v1/files; the response."""
        return self.client.post("/v1/files", files={"file": (filename, rows)}, data={"purpose": purpose})

    def body(self, **fields: Any) -> dict[str, Any]:
        """A create request that is accepted, with some fields replaced; None removes one."""
        body = {"model": self.seeded.model, "training_file": self.seeded.training_file, "jenga": SMALL, **fields}
        return {name: value for name, value in body.items() if value is not None}

    def create(self, **fields: Any) -> Any:
        """POST /v1/fine_tuning/jobs; the response."""
        content = json.dumps(self.body(**fields))  # escapes lone surrogates, which the client would refuse to send
        return self.client.post("/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"})

    def jobs(self) -> int:
        """How many job rows there are, whoever owns them."""
        with self.database.reading() as session:
            return session.scalars(select(func.count()).select_from(Job)).one()


@pytest.fixture
def api(settings: Settings, database: Database, rings: list[str]) -> Iterator[Api]:
    """The API, started."""
    seeded = seed(database, settings)
    app = create_app(settings)
    with TestClient(app) as client:
        key = key_of(database, settings, seeded.team_id)
        client.headers["Authorization"] = f"Bearer {key}"
        yield Api(app, client, database, settings, seeded, key)


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Doorbells rung, instead of sent."""
    rung: list[str] = []
    monkeypatch.setattr(queue, "ring", rung.append)
    return rung


def key_of(database: Database, settings: Settings, team_id: str) -> str:
    """A new key of the team."""
    with database.writing() as session:
        return create_key(session, session.get_one(Team, team_id), "test", pepper=settings.pepper)


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The envelope's content, after checking status and shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")
    return error

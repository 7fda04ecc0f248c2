"""A real uvicorn server on a free port, in a thread of this process, and the official client pointed at it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from jenga_core.service.accounts.keys import create_key
from jenga_core.service.db.models import Team
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import queue
from jenga_core.service.settings import Settings
from tests.support.jobs import Seed, seed

START_SECONDS = 30


@dataclass(frozen=True)
class Service:
    """Where the server is, and what its jobs can be made of."""

    host: str
    port: int
    key: str
    seeded: Seed
    database: Database
    settings: Settings
    app: FastAPI
    received_bytes: list[int]
    """What the server has read from its sockets, piece by piece."""

    def client(self, *, strict: bool = False, key: str | None = None, max_retries: int = 0) -> openai.OpenAI:
        """The official client; only base_url and api_key are ours. Strict mode raises on any answer off the schema."""
        return openai.OpenAI(
            base_url=f"http://{self.host}:{self.port}/v1",
            api_key=key or self.key,
            max_retries=max_retries,
            timeout=30,
            _strict_response_validation=strict,
        )


@pytest.fixture
def service(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A running server. No worker listens: doorbells are dropped."""
    monkeypatch.setattr(queue, "ring", lambda _job_id: True)
    seeded = seed(database, settings)
    with database.writing() as session:
        key = create_key(session, session.get_one(Team, seeded.team_id), "test", pepper=settings.pepper)
    app, received = create_app(settings), []
    config = uvicorn.Config(app, log_level="warning", lifespan="on")
    config.load()
    read = config.http_protocol_class.data_received

    def counted(protocol: Any, data: bytes) -> None:
        received.append(len(data))
        read(protocol, data)

    monkeypatch.setattr(config.http_protocol_class, "data_received", counted)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + START_SECONDS
            while not server.started:
                assert thread.is_alive(), "the server ended while starting"
                assert time.monotonic() < deadline, f"the server did not start within {START_SECONDS} s"
                time.sleep(0.02)
            yield Service(host, port, key, seeded, database, settings, app, received)
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)
    assert not thread.is_alive()


@pytest.fixture(params=[False, True], ids=["default", "strict"])
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[openai.OpenAI]:
    """The official client, as it comes and in strict mode."""
    with service.client(strict=request.param) as made:
        yield made

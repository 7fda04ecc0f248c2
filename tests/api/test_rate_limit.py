"""So many requests a minute and no more, and the headers that say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.api.conftest import error_of, key_of
from tests.support.jobs import seed

LIMIT = 3


@pytest.fixture
def limited(settings: Settings, database: Database, broker_url: str) -> Iterator[TestClient]:
    """The API on a broker, with a key that may ask three times."""
    settings = settings.model_copy(update={"broker_url": broker_url, "requests_per_minute": LIMIT})
    key = key_of(database, settings, seed(database, settings).team_id)
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


def test_a_key_is_refused_after_its_minutes_requests(limited: TestClient, database: Database) -> None:
    answers = [limited.get("/v1/models") for _ in range(LIMIT + 1)]
    if answers[-1].status_code == 200:  # the minute turned in between
        answers = [limited.get("/v1/models") for _ in range(LIMIT + 1)]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    error = error_of(answers[-1], 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].headers["x-ratelimit-limit-requests"] == str(LIMIT)
    assert "x-should-retry" not in answers[-1].headers
    assert limited.get("/healthz").status_code == 200


def test_keys_are_counted_apart(limited: TestClient, settings: Settings, database: Database) -> None:
    for _ in range(LIMIT + 1):
        limited.get("/v1/models")
    other = key_of(database, settings, seed(database, settings).team_id)
    assert limited.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200

"""A team with jobs, a team without, their keys, and the API that serves their pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jenga_core.service.accounts.keys import create_key
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.web import base_models
from tests.web.seed import seed, write_files
from tests.web.server import Server, launch


@dataclass
class Site:
    """The app, a browser without a cookie, and the key that opens the seeded team's pages."""

    client: TestClient
    key: str
    other_key: str
    """Opens another team, which has no jobs."""

    def log_in(self, key: str | None = None) -> None:
        """Paste a key into the form."""
        response = self.client.post("/login", data={"key": key or self.key}, follow_redirects=False)
        assert response.status_code == 303, response.text


@pytest.fixture
def keys(settings: Settings, database: Database) -> tuple[str, str]:
    """Keys of the seeded team and of an empty one."""
    with database.writing() as session:
        team, other = create_team(session, "seeded"), create_team(session, "empty")
        base_models.write(settings, "smollm2-135m", base_models.SMOLLM2_135M)
        write_files(settings)
        seed(session, team)
        return (
            create_key(session, team, "test", pepper=settings.pepper),
            create_key(session, other, "test", pepper=settings.pepper),
        )


@pytest.fixture
def site(settings: Settings, keys: tuple[str, str]) -> Iterator[Site]:
    """The whole API, over https."""
    with TestClient(create_app(settings), base_url="https://jenga.test") as client:
        yield Site(client, *keys)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, shared by the tests of a module."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright_api.sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def server(settings: Settings, keys: tuple[str, str]) -> Iterator[Server]:
    """The API below a sub-path, with the seeded rows."""
    server = Server(settings)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Any, server: Server, keys: tuple[str, str]) -> Iterator[Any]:
    """A logged-in visitor of the seeded team (tests/web/visits.py), `wide` or `narrow`."""
    from tests.web.visits import visiting  # it imports playwright, which may be missing

    with visiting(browser, server.url, narrow=getattr(request, "param", "wide") == "narrow") as visit:
        visit.open()
        visit.log_in(keys[0])
        yield visit

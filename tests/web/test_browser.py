"""The pages in a real browser, below a sub-path, over the real API. Needs Chromium; any console error fails a test."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from sqlalchemy import update
from starlette.applications import Starlette
from starlette.routing import Mount

from api.app import create_app
from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.web import seed

playwright_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
from playwright.sync_api import Browser, Page, expect  # noqa: E402 - skipped above where missing

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# A root user cannot run the sandbox; the rest keeps the browser from calling home.
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-sandbox"]
MOUNT = "/tools/jenga"

wide_and_narrow = pytest.mark.parametrize("visit", ["wide", "narrow"], indirect=True)

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium; or set CHROMIUM)"
    ),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


class Server:
    """uvicorn in a thread, on a port that stays the same over stop and start."""

    def __init__(self, settings: Settings) -> None:
        self.app = Starlette(routes=[Mount(MOUNT, create_app(settings))])
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{MOUNT}/"

    def start(self) -> None:
        """Serve; returns once connections are taken."""
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=self.port, ws="none", log_level="error", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            assert self._thread.is_alive(), "uvicorn ended before it served"
            assert time.monotonic() < deadline, "uvicorn did not start within 30 s"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop serving and wait until the port is free."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


@dataclass
class Visit:
    """A page, and what its console complained about."""

    page: Page
    server: Server
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> None:
        """Go to a path below the mount."""
        self.page.goto(self.server.url + path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server(settings: Settings, keys: tuple[str, str]) -> Iterator[Server]:
    server = Server(settings)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Browser, server: Server, keys: tuple[str, str]) -> Iterator[Visit]:
    """A logged-in browser, wide and light, or narrow and dark."""
    narrow = getattr(request, "param", "wide") == "narrow"
    context = browser.new_context(
        viewport={"width": 400 if narrow else 1280, "height": 900}, color_scheme="dark" if narrow else "light"
    )
    context.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)
    visit = Visit(context.new_page(), server)
    visit.page.on("console", lambda message: visit.complaints.append(message.text) if message.type == "error" else None)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.open()
    visit.page.get_by_label("API key").fill(keys[0])
    visit.page.get_by_role("button", name="Log in").click()
    yield visit
    context.close()
    assert visit.complaints == []


@wide_and_narrow
def test_the_list_follows_a_job_and_outlives_the_server(visit: Visit, database: Database) -> None:
    page = visit.page
    expect(page.get_by_role("table").get_by_role("row")).to_have_count(5)
    row = page.get_by_role("row").filter(has_text=seed.RUNNING)
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("finetune")
    expect(row).to_contain_text("7 / 12")
    expect(row).to_contain_text("2.2")
    assert _fits(page)

    row.get_by_role("link").focus()
    _advance(database, step=8)
    expect(row).to_contain_text("8 / 12")
    expect(row.get_by_role("link")).to_be_focused()

    visit.server.stop()
    expect(page.locator("#connection")).to_have_text("Reconnecting…")
    expect(row).to_contain_text("8 / 12")
    visit.server.start()
    expect(page.locator("#connection")).to_have_text("")
    visit.complaints[:] = [text for text in visit.complaints if "ERR_CONNECTION_REFUSED" not in text]


@wide_and_narrow
def test_a_job_shows_its_loss_memory_and_blocks(visit: Visit, database: Database) -> None:
    page = visit.page
    page.get_by_role("link", name=seed.RUNNING).click()
    expect(page.locator("#state")).to_have_text("running finetune")
    expect(page.locator("#loss-chart .scatterlayer .trace")).to_have_count(2)
    expect(page.locator("#loss-summary")).to_contain_text("Held-out loss 2.500 at step 0, 2.354 at step 4.")
    expect(page.locator("#memory-summary")).to_have_text(
        "Activations saved for backward: 121 MB instead of 640 MB (5.3\N{MULTIPLICATION SIGN} less)."
    )
    expect(page.locator("#selection-chart .heatmaplayer image")).to_have_count(1)
    expect(page.locator("#selection-summary")).to_contain_text("They were chosen at layer 15.")
    expect(page.locator("#events li").first).to_contain_text("warning2 rows were cut")
    assert _fits(page)

    slider = page.get_by_label("Step", exact=True)
    slider.press("Home")
    expect(page.locator("#selection-summary")).to_contain_text("Step 1:")
    _advance(database, step=8)
    expect(page.locator("#loss-summary")).to_contain_text("at step 8")
    expect(page.locator("#selection-summary")).to_contain_text("Step 1:")  # a reader looking back is left in peace
    slider.press("End")
    expect(page.locator("#selection-at")).to_have_text("8 (latest)")


def test_a_job_that_ended_offers_its_files(visit: Visit) -> None:
    visit.open(f"jobs/{seed.SUCCEEDED}")
    link = visit.page.get_by_role("link", name="adapter.tar.gz")
    expect(link).to_have_attribute("href", f"{visit.server.url}v1/files/file-adapter/content")
    expect(visit.page.get_by_role("button", name="Cancel job")).to_be_hidden()
    expect(visit.page.locator("#results")).to_contain_text("ft:smollm2-135m:default::success")
    expect(visit.page.locator("#results")).to_contain_text("held out after loss2.2047")
    expect(visit.page.locator("#results")).to_contain_text("activation121 MB")


def test_a_failed_job_says_why_and_its_words_stay_words(visit: Visit) -> None:
    visit.open(f"jobs/{seed.FAILED}")
    expect(visit.page.locator("#failure")).to_contain_text(f"Row 7 could not be read: {seed.HOSTILE}")
    expect(visit.page.locator("#events")).to_contain_text(seed.HOSTILE)
    assert visit.page.locator("img[src=x]").count() == 0


def test_cancelling_asks_first(visit: Visit, database: Database) -> None:
    page = visit.page
    visit.open(f"jobs/{seed.QUEUED}")
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("button", name="Keep running").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert _state(database, seed.QUEUED) == "queued"
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(page.locator("#state")).to_have_text("cancelled")
    assert _state(database, seed.QUEUED) == "cancelled"


@wide_and_narrow
def test_without_jobs_the_list_teaches_the_first_one(visit: Visit, keys: tuple[str, str]) -> None:
    page = visit.page
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("API key").fill(keys[1])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    expect(page.locator("#empty")).to_contain_text(f'OpenAI(base_url="{visit.server.url}v1"')
    assert _fits(page)


def _fits(page: Page) -> bool:
    """Nothing makes the page scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def _advance(database: Database, *, step: int) -> None:
    with database.writing() as session:
        seed.add_step(session, seed.RUNNING, step, time.time())
        session.execute(update(Job).where(Job.id == seed.RUNNING).values(step=step))


def _state(database: Database, job_id: str) -> str:
    with database.reading() as session:
        job = session.get(Job, job_id)
        assert job is not None
        return job.state

"""Pictures of every page: `python -m tests.web.screenshots FOLDER [NAME ...]`, wide in light and dark, and narrow.

A real API serves made-up rows (gallery.py) from a database that is gone afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from jenga_core.service.accounts.keys import create_key, key_id_of
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from migrations.upgrade import upgrade
from tests.web import gallery
from tests.web.server import Server, launch

KINDS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1360, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1360, "height": 900}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 400, "height": 860}, "color_scheme": "light"},
}
IMPORTANT = ("jobs-light", "job-light", "job-per-layer-dark", "new-light", "compare-light", "fleet-dark", "jobs-narrow")
"""Those that stand in docs."""

SETTLE_MILLISECONDS = 900
QUIET_MILLISECONDS = 20_000


def pages() -> dict[str, str]:
    """Path by name."""
    compared = "&".join(f"job={gallery.job_id(name)}" for name in ("contracts-dense", "contracts-40", "contracts-25"))
    return {
        "jobs": "",
        "job": f"jobs/{gallery.job_id('contracts')}",
        "job-failed": f"jobs/{gallery.job_id('long')}",
        "job-per-layer": f"jobs/{gallery.job_id('contracts-paper')}",
        "new": f"jobs/new?from={gallery.job_id('contracts')}",
        "compare": f"compare?{compared}",
        "files": "storage",
        "predictors": "predictors",
        "fleet": "fleet",
        "keys": "keys",
        "login": "login",
    }


def shoot(page: Page, url: str, path: Path) -> None:
    """One page, whole, once it is quiet."""
    page.goto(url)
    page.wait_for_load_state("load")
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    if page.locator("#estimate").count():  # it is asked for a moment after the page has come
        page.locator("#estimate .bars").first.wait_for(timeout=QUIET_MILLISECONDS)
    page.screenshot(path=path, full_page=True)


def main(folder: Path, names: list[str], docs: Path | None = None) -> None:
    """Write FOLDER/NAME-KIND.png for every page, or for those named; copy the IMPORTANT ones to `docs`."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: path for name, path in pages().items() if not names or name in names}
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        settings = Settings(data_dir=Path(data), broker_url="memory://", requests_per_minute=0)
        server, key = serve(settings)
        browser = launch(playwright)
        for kind, look in KINDS.items():
            context = browser.new_context(**look)
            page = context.new_page()
            page.on("pageerror", lambda error: print("page error:", error))
            if "login" in wanted:
                shoot(page, server.url + wanted["login"], folder / f"login-{kind}.png")
            page.goto(server.url + "login")
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Log in").click()
            for name, path in wanted.items():
                if name != "login":
                    shoot(page, server.url + path, folder / f"{name}-{kind}.png")
            context.close()
        browser.close()
        server.stop()
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        for name in IMPORTANT:
            shutil.copyfile(folder / f"{name}.png", docs / f"{name}.png")


def serve(settings: Settings) -> tuple[Server, str]:
    """The API with the gallery, and a key for it."""
    upgrade(settings)
    database = Database(settings.database)
    with database.writing() as session:
        team = create_team(session, "legal")
        key = create_key(session, team, "ada", pepper=settings.pepper)
        gallery.fill(session, settings, team, key_id_of(key))
    database.dispose()
    server = Server(settings)
    server.start()
    return server, key


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="of pages; all of them when left out")
    parser.add_argument("--docs", type=Path, help="folder that gets the important ones")
    options = parser.parse_args()
    main(options.folder, options.names, options.docs)

"""How fast the list of jobs is on the screen: `python -m benchmarks pages`, in headless Chromium, with 500 jobs.

    cold      a browser that has never been here: from the start of the navigation until all rows are painted
    warm      the same with the scripts and styles in its cache
    search    from a letter typed to the rows that match
    sort      from a click on a column to the rows in the new order

One API process and one browser on the same machine, SQLite. The goals are in GOALS; the JSON file says which were met,
and this command fails when one was not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from benchmarks.api import RESULTS, environment, percentiles, serving
from benchmarks.api_data import fill
from jenga_core.service.settings import Settings

GOALS = {"cold_p50_ms": 1000.0, "warm_p50_ms": 1000.0}
"""At most."""

EVENTS_OF_A_JOB = 20
FLAGS = ["--disable-gpu", "--no-sandbox", "--disable-background-networking"]

PAINTED = """count => new Promise(done => {
  const look = () => document.querySelectorAll("#jobs tbody tr").length === count
    ? requestAnimationFrame(() => setTimeout(() => done(performance.now())))
    : requestAnimationFrame(look);
  look();
})"""
"""Milliseconds from the start of the navigation until so many rows have been painted."""

TIMED = """([selector, act]) => new Promise(done => {
  const node = document.querySelector(selector), began = performance.now();
  if (act === "click") node.click();
  else { node.value = act; node.dispatchEvent(new Event("input", { bubbles: true })); }
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""
"""Milliseconds from a click or a text typed until the next frame has been painted."""


def main(argv: list[str]) -> int:
    """Measure, print, write `pages.json`; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pages", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("no chromium on PATH (Debian: apt-get install chromium; or set CHROMIUM)")
    with tempfile.TemporaryDirectory(prefix="jenga-bench-") as folder, sync_playwright() as playwright:
        settings = Settings(data_dir=Path(folder), broker_url="memory://", requests_per_minute=0)
        filled = fill(settings, jobs=options.jobs, events=EVENTS_OF_A_JOB * options.jobs)
        with serving(settings, filled.key) as api:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            measured = measure(browser, api.url, filled.key, options.jobs, options.repeats)
            version = browser.version
            browser.close()
    figures = {f"{name}_p50_ms": values["p50_ms"] for name, values in measured.items()}
    result = {
        "environment": {**environment("sqlite"), "chromium": version, "load_after": round(os.getloadavg()[0], 2)},
        "data": {"jobs": options.jobs, "repeats": options.repeats},
        "goals": GOALS,
        "figures": figures,
        "missed": [name for name, goal in GOALS.items() if figures[name] > goal],
        "measured": measured,
    }
    (options.out / "pages.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 1 if result["missed"] else 0


def measure(browser: Browser, url: str, key: str, jobs: int, repeats: int) -> dict[str, dict[str, float]]:
    """Percentiles of each kind, in milliseconds."""
    taken: dict[str, list[float]] = {"cold": [], "warm": [], "search": [], "sort": []}
    for _ in range(repeats):
        context = _visitor(browser, url, key)
        page = context.new_page()
        for kind in ("cold", "warm"):
            page.goto(url)
            taken[kind].append(page.evaluate(PAINTED, jobs))
        taken["search"].append(_act(page, "#search", "running"))
        _act(page, "#search", "")
        taken["sort"].append(_act(page, '[data-sort="state"]', "click"))
        context.close()
    return {kind: percentiles(values) for kind, values in taken.items()}


def _visitor(browser: Browser, url: str, key: str) -> BrowserContext:
    """A browser with nothing in its cache but the key."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_cookies([{"name": "jenga_key", "value": key, "url": url}])
    return context


def _act(page: Page, selector: str, action: str) -> float:
    taken: Any = page.evaluate(TIMED, [selector, action])
    return float(taken)

"""A whole visit to a real service with a real trainer: from the key to the adapter on disk, over every page."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny_model
from tests.support.up import Up, run, running
from tests.web.server import CHROMIUM, NO_CHROMIUM

playwright_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
from playwright.sync_api import Browser, Page, expect  # noqa: E402 - skipped above where missing

from tests.web.visits import Visit, fits, visiting  # noqa: E402 - it imports playwright

TRAINING_MILLISECONDS = 180_000

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`jenga up` with a tiny base model."""
    folder = tmp_path_factory.mktemp("walk")
    with running(folder / "data") as up:
        added = run("models", "add", str(save_tiny_model(folder / "tiny")), "--data-dir", str(up.data_dir))
        assert added.returncode == 0, added.stderr
        yield up


def test_from_the_key_to_the_adapter(service: Up, browser: Browser, tmp_path: Path) -> None:
    with visiting(browser, f"{service.url}/") as visit:
        visit.open()
        visit.log_in(service.key)
        page = visit.page
        expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
        _healthy(visit)
        page.get_by_role("link", name="New job").first.click()
        first = _submit_with_a_bad_file(visit, tmp_path)
        _watch_to_success(visit)
        _download(page, tmp_path)
        second = _clone_pause_and_cancel(visit, first)
        _compare(visit, first, second)
        _other_pages(visit)
        visit.complaints[:] = [text for text in visit.complaints if "400" not in text]  # the estimate of half a form


def _healthy(visit: Visit) -> None:
    assert visit.serious_faults() == []
    assert fits(visit.page)


def _submit_with_a_bad_file(visit: Visit, folder: Path) -> str:
    page, path = visit.page, folder / "train.jsonl"
    rows = [json.dumps({"text": f"{number} of many documents " * 20}) for number in range(12)]
    path.write_text("\n".join([*rows[:7], '{"txt": "a typo"}', *rows[7:]]))
    page.get_by_label("Upload…").first.set_input_files(path)
    wrong = page.locator("#training_file tr.wrong")
    expect(wrong).to_contain_text("expected 'text', 'messages', or 'prompt' and 'completion'")
    expect(wrong).to_contain_text("a typo")
    _healthy(visit)

    path.write_text("\n".join(rows))
    page.get_by_label("Upload…").first.set_input_files(path)
    expect(page.locator("#training_file .said")).to_contain_text("every row can be read")
    page.get_by_label("Upload…").nth(1).set_input_files(path)
    expect(page.locator("#validation_file .said")).to_contain_text("every row can be read")
    page.get_by_label("Context, tokens").fill("128")
    page.get_by_label("Steps at most").fill("30")
    page.get_by_text("Every other setting").click()
    page.get_by_label("block tokens").fill("16")
    estimate = page.locator("#estimate")
    expect(estimate).to_contain_text("fits")
    expect(estimate).to_contain_text("steps30")
    _healthy(visit)
    page.get_by_role("button", name="Submit job").click()
    expect(page).to_have_url(re.compile(r"/jobs/ftjob-\w+$"))
    return page.url.rpartition("/")[2]


def _watch_to_success(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#events")).to_contain_text("Stage finetune began", timeout=TRAINING_MILLISECONDS)
    expect(page.locator("#state")).to_have_text("succeeded", timeout=TRAINING_MILLISECONDS)
    expect(page.locator("#loss-chart .scatterlayer .trace")).to_have_count(3)
    expect(page.locator("#loss-summary")).to_contain_text("at step 30")
    expect(page.locator("#memory-summary")).to_contain_text("instead of")
    expect(page.locator("#selection-chart .heatmaplayer image")).to_have_count(2)
    expect(page.locator("#events li").first).to_contain_text("successfully completed")
    told = page.locator("#events li", has_text="selecting from layer").inner_text()
    entry = re.search(r"selecting from (layer \d+) on", told)
    assert entry is not None
    expect(page.locator("#selection-summary")).to_contain_text(f"chosen at {entry[1]}.")
    expect(page.locator("#config")).to_contain_text(f"once, at {entry[1]}")
    _healthy(visit)


def _download(page: Page, folder: Path) -> None:
    with page.expect_download() as downloading:
        page.get_by_role("link", name="adapter.tar.gz").click()
    archive = folder / "adapter.tar.gz"
    downloading.value.save_as(archive)
    with tarfile.open(archive) as tar:
        assert any(name.endswith("adapter_config.json") for name in tar.getnames())


def _clone_pause_and_cancel(visit: Visit, first: str) -> str:
    page = visit.page
    page.get_by_role("link", name="Clone").click()
    expect(page.locator("#origin")).to_contain_text(first)
    expect(page.get_by_label("block tokens")).to_have_value("16")
    page.get_by_label("Steps at most").fill("100000")
    page.get_by_label("Blocks kept").fill("0.6")
    page.get_by_role("button", name="Submit job").click()
    expect(page.locator("#progress")).to_contain_text(re.compile(r"[1-9]\d* / 100,000"), timeout=TRAINING_MILLISECONDS)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#state")).to_contain_text("paused", timeout=TRAINING_MILLISECONDS)
    expect(page.locator("#waiting")).to_contain_text("it holds no device")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#events")).to_contain_text("Going on from checkpoint-", timeout=TRAINING_MILLISECONDS)
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(page.locator("#state")).to_have_text("cancelled", timeout=TRAINING_MILLISECONDS)
    return page.url.rpartition("/")[2]


def _compare(visit: Visit, first: str, second: str) -> None:
    page = visit.page
    page.get_by_role("link", name="Jobs").first.click()
    for job_id in (first, second):
        page.get_by_label(f"Pick {job_id}").check()
    page.get_by_role("link", name="Compare 2 jobs").click()
    expect(page.locator("#train-chart .trace path.js-line").nth(1)).to_be_visible()
    lines = "[...document.querySelectorAll('#train-chart .trace path.js-line')]"  # long curves are drawn smoothed, too
    assert page.evaluate(f"new Set({lines}.map(line => line.style.stroke)).size") == 2
    expect(page.locator("#settings")).to_contain_text("60% of blocks of 16 tokens")
    _healthy(visit)


def _other_pages(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Predictors").click()
    expect(page.get_by_role("heading", name="No predictors yet")).to_be_visible()
    _healthy(visit)
    page.get_by_role("link", name="Fleet").click()
    expect(page.locator("#workers")).to_contain_text("online")
    expect(page.locator("#workers")).to_contain_text("free")
    _healthy(visit)
    page.get_by_role("link", name="Keys").click()
    page.get_by_label("Name").fill("robot")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_label("The new key", exact=True)).to_have_value(re.compile("jenga_"))
    page.get_by_role("button", name="Revoke robot").click()
    page.get_by_role("button", name="Revoke key").click()
    expect(page.get_by_role("row").filter(has_text="robot")).to_contain_text("revoked")
    _healthy(visit)

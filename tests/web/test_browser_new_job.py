"""The form for a new job, in a real browser: files, what is wrong with them, what the job will need, clones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jenga_core.service.db.models import Device, Job
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.web import seed
from tests.web.server import CHROMIUM, NO_CHROMIUM

playwright_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
from playwright.sync_api import expect  # noqa: E402 - skipped above where missing

from tests.web.visits import Visit, box_of  # noqa: E402 - it imports playwright

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


def test_a_bad_file_is_shown_row_by_row_corrected_and_submitted(visit: Visit, tmp_path: Path) -> None:
    page, path = visit.page, tmp_path / "train.jsonl"
    good = [json.dumps({"text": f"Document {number}"}) for number in range(6)]
    path.write_text("\n".join([*good[:4], '{"text": 5}', good[5]]))
    page.get_by_role("link", name="New job").first.click()
    page.get_by_label("Upload…").first.set_input_files(path)
    picker = page.locator("#training_file")
    expect(picker.locator(".said")).to_contain_text("train.jsonl was not accepted: Row 5: 'text' must be a string")
    wrong = picker.locator("tr.wrong")
    expect(wrong).to_have_count(1)
    expect(wrong).to_contain_text("5")
    expect(wrong).to_contain_text('{"text": 5}')
    page.get_by_role("button", name="Submit job").click()
    expect(page.get_by_role("alert")).to_have_text("Choose a training file first, or upload one.")

    path.write_text("\n".join(good))
    page.get_by_label("Upload…").first.set_input_files(path)
    expect(picker.locator(".said")).to_contain_text("every row can be read")
    expect(picker.locator("tr.wrong")).to_have_count(0)
    expect(page.locator("#problem")).to_be_hidden()
    page.get_by_label("Context, tokens").fill("3")
    expect(page.locator("#estimate-said")).to_contain_text("context_length_tokens")
    page.get_by_role("button", name="Submit job").click()
    expect(page.get_by_role("alert")).to_contain_text("context_length_tokens")
    expect(page.get_by_label("Context, tokens")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Context, tokens")).to_be_focused()
    expect(page.locator("#estimate-said")).to_have_text("As it is, the job would be refused.")  # why is said once
    page.get_by_label("Context, tokens").fill("64")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("[aria-invalid]")).to_have_count(0)
    page.get_by_role("button", name="Submit job").click()
    expect(page).to_have_url(re.compile(r"/jobs/ftjob-\w+$"))
    expect(page.locator("#state")).to_have_text("queued")
    expect(page.locator("#config")).to_contain_text("64 tokens")
    visit.complaints[:] = [text for text in visit.complaints if "400" not in text]


def test_settings_that_do_not_fit_are_no_wrong_row(visit: Visit, database: Database) -> None:
    with database.writing() as session:
        session.get_one(Device, "GPU-1").memory_bytes = 2**30
    visit.open("jobs/new")
    page = visit.page
    page.locator("#training_file-pick").select_option("file-training")
    page.get_by_label("Context, tokens").fill("8192")
    page.get_by_label("Batch size").fill("256")
    expect(page.locator("#estimate-said")).to_have_text("As it is, the job would be refused.")
    expect(page.locator("#estimate .warning")).to_contain_text("the job needs about")
    expect(page.locator("#training_file tr.wrong")).to_have_count(0)
    expect(page.locator("#training_file .said")).to_be_hidden()


def test_rows_longer_than_the_context_are_told_apart(visit: Visit, settings: Settings) -> None:
    long = b'{"text": "' + b"many words " * 300 + b'"}\n'
    (settings.data_dir / "files" / "file-training").write_bytes(seed.ROWS + long)
    visit.open("jobs/new")
    page = visit.page
    page.locator("#training_file-pick").select_option("file-training")
    estimate = page.locator("#estimate")
    for typed in ("", "2048"):  # the preset's own context, and the same typed
        page.get_by_label("Context, tokens").fill(typed)
        expect(estimate).to_contain_text("within the context of 2,048")
        expect(estimate).to_contain_text("Longer texts are split into windows, not cut")
        expect(estimate.locator(".histogram .past")).to_have_count(1)
    page.get_by_label("Context, tokens").fill("8192")
    expect(estimate.locator(".histogram .past")).to_have_count(0)
    expect(estimate).not_to_contain_text("Longer texts")


@pytest.mark.parametrize("visit", ["narrow"], indirect=True)
def test_on_a_phone_the_estimate_comes_before_submit(visit: Visit) -> None:
    visit.open("jobs/new")
    submit = visit.page.get_by_role("button", name="Submit job")
    expect(submit).to_be_visible()
    assert box_of(visit.page.locator("#estimate-title"))["y"] < box_of(submit)["y"]


def test_a_clone_starts_from_the_other_jobs_settings(visit: Visit, database: Database) -> None:
    with database.writing() as session:
        job = session.get_one(Job, seed.SUCCEEDED)
        job.hyperparameters = {**job.hyperparameters, "learning_rate_multiplier": 0.5}
        other = session.get_one(Job, seed.FAILED)
        other.config = {**other.config, "eval_windows": 7}
    visit.open(f"jobs/{seed.SUCCEEDED}")
    visit.page.get_by_role("link", name="Clone").click()
    page = visit.page
    expect(page.locator("#origin")).to_have_text(f"with the settings of {seed.SUCCEEDED}")
    expect(page.get_by_label("Context, tokens")).to_have_value("1024")
    expect(page.get_by_label("Steps at most")).to_have_value("12")
    expect(page.get_by_label("Blocks kept")).to_have_value("0.4")
    expect(page.get_by_label("Rate multiplier")).to_have_value("0.5")
    expect(page.locator("#training_file-pick")).to_have_value("file-training")
    expect(page.locator("#training_file .rows")).to_contain_text("the second document")
    expect(page.locator('[data-path="selection.block_tokens"]')).to_have_value("")  # the preset's own
    expect(page.locator("#more")).not_to_have_attribute("open", "")
    visit.open(f"jobs/new?from={seed.FAILED}")
    expect(page.get_by_label("eval windows")).to_have_value("7")
    expect(page.get_by_label("eval windows")).to_be_visible()

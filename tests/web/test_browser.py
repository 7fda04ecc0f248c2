"""The pages in a real browser, below a sub-path, over the real API. Needs Chromium; any console error fails a test."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from jenga_core.config import JengaConfig, LoraConfig
from jenga_core.finetuning.adapters import add_adapter, pack_adapter, save_adapter
from jenga_core.service.accounts import teams
from jenga_core.service.accounts.keys import Scope, create_key
from jenga_core.service.db.models import DeviceLease, Job, JobMetric, JobSelection, StoredFile
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.support.tiny import tiny_model
from tests.web import seed
from tests.web.server import CHROMIUM, NO_CHROMIUM, Server

playwright_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
from playwright.sync_api import expect  # noqa: E402 - skipped above where missing

from tests.web.visits import Visit, box_of, fits  # noqa: E402 - it imports playwright

wide_and_narrow = pytest.mark.parametrize("visit", ["wide", "narrow"], indirect=True)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


@wide_and_narrow
def test_every_page_is_filled_fits_and_has_no_serious_fault(visit: Visit) -> None:
    """Axe looks at each page as a reader finds it, once its data has come."""
    filled = {
        "": "4 jobs",
        f"jobs/{seed.RUNNING}": "Held-out loss 2.500 at step 0",
        f"jobs/{seed.FAILED}": "Failed in stage prepare",
        "jobs/new": "Every other setting",
        f"compare?job={seed.RUNNING}&job={seed.SUCCEEDED}": "held-out loss, now",
        "compare": "Two jobs make a comparison",
        "storage": "left by a job",
        "predictors": "Recall 92% or more",
        "fleet": "held by",
        "keys": "in use here",
        "jobs/none": "No such job",
        "nope/nope": "No such page",
    }
    for path, words in filled.items():
        visit.open(path)
        expect(visit.page.locator("main")).to_contain_text(words)
        assert visit.serious_faults() == [], path
        assert fits(visit.page), path
    visit.complaints[:] = [text for text in visit.complaints if "404" not in text]  # as asked


def test_the_list_follows_a_job_and_outlives_the_server(visit: Visit, server: Server, database: Database) -> None:
    page = visit.page
    expect(page.get_by_role("table").get_by_role("row")).to_have_count(5)
    row = page.get_by_role("row").filter(has_text=seed.RUNNING)
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("finetune")
    expect(row).to_contain_text("7 / 12")
    expect(row).to_contain_text("2.2")
    expect(row).to_contain_text("115 MiB")
    expect(row).to_contain_text("5.3\N{MULTIPLICATION SIGN} less")
    assert fits(page)

    row.get_by_role("link").focus()
    _advance(database, step=8)
    expect(row).to_contain_text("8 / 12")
    expect(row.get_by_role("link")).to_be_focused()

    server.stop()
    expect(page.locator("#connection")).to_have_text("Reconnecting…")
    expect(row).to_contain_text("8 / 12")
    server.start()
    expect(page.locator("#connection")).to_have_text("")
    visit.complaints[:] = [text for text in visit.complaints if "ERR_CONNECTION_REFUSED" not in text]


def test_jobs_are_found_filtered_sorted_and_picked(visit: Visit) -> None:
    page = visit.page
    rows = page.locator("#jobs tbody tr")
    expect(rows).to_have_count(4)
    page.get_by_label("Search").fill("smollm2 succ")
    expect(rows).to_have_count(1)
    expect(page.locator("#count")).to_have_text("1 of 4 jobs")
    page.get_by_label("Search").fill("nothing like it")
    expect(page.get_by_text("No job matches.")).to_be_visible()
    page.get_by_role("button", name="Show all jobs").click()
    expect(rows).to_have_count(4)

    page.get_by_role("radio", name="failed 1").check(force=True)
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text(seed.FAILED)
    page.reload()  # the address remembers
    expect(rows).to_have_count(1)
    page.get_by_role("radio", name="all 4").check(force=True)

    page.get_by_role("button", name="Loss").click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Loss")
    expect(rows.first).to_contain_text(seed.RUNNING)
    page.get_by_role("button", name="Loss").click()
    expect(rows.first).to_contain_text(seed.SUCCEEDED)
    expect(rows.nth(2)).not_to_contain_text("2.")  # jobs without a loss come last either way

    for job_id in (seed.RUNNING, seed.SUCCEEDED):
        page.get_by_label(f"Pick {job_id}").check()
    page.get_by_role("link", name="Compare 2 jobs").click()
    expect(page.locator("#measured")).to_contain_text("5.3\N{MULTIPLICATION SIGN} less")
    expect(page.locator("#heldout-chart .trace")).to_have_count(2)
    page.get_by_role("button", name=f"Take {seed.RUNNING} out").click()
    expect(page.get_by_role("heading", name="Two jobs make a comparison")).to_be_visible()
    page.get_by_label("Add a job").select_option(seed.FAILED)
    expect(page.locator("#settings")).to_contain_text("They are all the same.")


def test_a_job_shows_its_loss_memory_and_blocks(visit: Visit, database: Database) -> None:
    page = visit.page
    page.get_by_role("link", name=seed.RUNNING).click()
    expect(page.locator("#state")).to_have_text("running finetune")
    expect(page.locator("#stages [aria-current=step]")).to_have_text("finetune")
    expect(page.locator("#loss-chart .scatterlayer .trace")).to_have_count(3)
    expect(page.locator("#loss-summary")).to_contain_text("Held-out loss 2.500 at step 0, 2.354 at step 4.")
    expect(page.locator("#memory-summary")).to_have_text(
        "Activations saved for backward: 115 MiB instead of 611 MiB (5.3\N{MULTIPLICATION SIGN} less)."
    )
    for bars in ("#memory-saved", "#memory-phases"):
        expect(page.locator(f"{bars} p")).to_have_text([re.compile("This job"), re.compile("Dense LoRA")])
    expect(page.locator("#figures")).to_contain_text(re.compile(r"Tokens involved\d+%\d of 16 blocks"))
    expect(page.locator("#config")).to_contain_text("max steps12")
    expect(page.locator("#config")).not_to_contain_text("n epochs")  # overruled
    expect(page.locator("#selection-chart .heatmaplayer image")).to_have_count(2)
    expect(page.locator("#selection-summary")).to_contain_text("They were chosen at layer 20.")
    expect(page.locator("#events li").first).to_contain_text("warning2 rows were cut")
    assert fits(page)

    slider = page.get_by_label("Step", exact=True)
    slider.press("Home")
    expect(page.locator("#selection-summary")).to_contain_text("Step 1:")
    _advance(database, step=8)
    expect(page.locator("#loss-summary")).to_contain_text("at step 8")
    expect(page.locator("#selection-summary")).to_contain_text("Step 1:")  # a reader looking back is left in peace
    expect(page.locator("#events li").first).to_contain_text("Step 8 came")
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#selection-at")).to_have_text("8 (latest)")
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # it stops at the end


def test_comparing_tells_every_setting_that_differs(visit: Visit) -> None:
    """Each value of the config is changed by itself, and some row must tell."""
    config = JengaConfig.preset("jenga", rope={"type": "yarn"}).model_dump(mode="json")
    job = {"model": "m", "hyperparameters": {}, "jenga": {"config": config, "report": None}}
    silent = """async (job) => {
        const { inWords, others } = await import("./static/settings.js");
        const rows = (job) => JSON.stringify({ ...inWords(job), ...others(job) });
        const paths = (tree, above = []) => Object.entries(tree).flatMap(([name, value]) =>
            value && typeof value === "object" ? paths(value, [...above, name]) : [[...above, name]]);
        return paths(job.jenga.config).filter((path) => {
            const changed = structuredClone(job);
            const parent = path.slice(0, -1).reduce((node, name) => node[name], changed.jenga.config);
            const before = parent[path.at(-1)];
            const another = { number: before + 1, boolean: !before, object: 3, string: `not ${before}` };
            parent[path.at(-1)] = { by: "threshold", scope: "per_layer" }[path.at(-1)] ?? another[typeof before];
            return rows(changed) === rows(job);
        });
    }"""
    assert visit.page.evaluate(silent, job) == []


def test_losses_of_different_windows_are_not_passed_off_as_comparable(visit: Visit, database: Database) -> None:
    page = visit.page
    visit.open(f"compare?job={seed.RUNNING}&job={seed.SUCCEEDED}")
    expect(page.locator("#settings")).to_contain_text("They are all the same.")
    expect(page.locator("#other-windows")).to_be_hidden()
    with database.writing() as session:
        job = session.get_one(Job, seed.SUCCEEDED)
        job.config = {**job.config, "eval_windows": 7, "predictor": {**job.config["predictor"], "steps": 8}}
    page.reload()
    expect(page.locator("#other-windows")).to_contain_text("the jobs differ in eval windows.")
    rows = page.locator("#settings tbody tr")
    expect(rows).to_have_text(["eval windows647", "predictor steps3008"])
    with database.writing() as session:  # a dense job has no predictors
        session.get_one(Job, seed.RUNNING).config = JengaConfig.preset("lora").model_dump(mode="json")
    page.reload()
    expect(page.locator("#settings")).to_contain_text("every token")
    expect(page.locator("#settings")).not_to_contain_text("predictor")


def test_the_page_draws_the_entry_layer_that_the_trainer_reports(visit: Visit, database: Database) -> None:
    page = visit.page
    fates = "document.querySelector('#selection-chart').data[0].z.map(row => row.includes(1) ? 'forward-only' : 'gone')"
    for job_id in (seed.RUNNING, seed.SUCCEEDED):
        visit.open(f"jobs/{job_id}")
        expect(page.locator("#config")).to_contain_text("once, at layer 20")
        expect(page.locator("#selection-summary")).to_contain_text("at layer 20.")
        assert page.evaluate(fates) == ["forward-only"] * 20 + ["gone"] * 10
    visit.open(f"jobs/{seed.QUEUED}")
    expect(page.locator("#config")).to_contain_text("once, at three fifths of the layers")
    with database.writing() as session:  # as jobs were recorded before: the report alone tells it, at the end
        session.execute(update(JobSelection).values(kept_blocks={"spans": []}))
    visit.open(f"jobs/{seed.SUCCEEDED}")
    expect(page.locator("#config")).to_contain_text("once, at layer 20")
    visit.open(f"jobs/{seed.RUNNING}")
    expect(page.locator("#config")).to_contain_text("once, at three fifths of the layers")


def test_a_job_that_ended_offers_its_files_and_tells_its_layers(visit: Visit) -> None:
    visit.open(f"jobs/{seed.SUCCEEDED}")
    page = visit.page
    link = page.get_by_role("link", name="adapter.tar.gz")
    expect(link).to_have_attribute("href", f"{visit.url}v1/files/file-adapter/content")
    for name in ("Cancel job", "Pause", "Resume", "Stop and save"):
        expect(page.get_by_role("button", name=name)).to_be_hidden()
    expect(page.locator("#results")).to_contain_text("ft:smollm2-135m:default::success")
    expect(page.locator("#layers-summary")).to_contain_text("Predictors recall 92% or more")
    expect(page.locator("#layers tbody tr")).to_have_count(2)
    expect(page.locator("#layers tbody tr").first).to_contain_text("0.0125")


def test_the_adapter_is_used_as_the_page_says(visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_model = tiny_model()
    save_adapter(add_adapter(tiny_model(), LoraConfig()), tmp_path / "trained", base_model_name="tiny")
    pack_adapter(tmp_path / "trained", tmp_path / "adapter.tar.gz")  # as the worker does
    visit.open(f"jobs/{seed.SUCCEEDED}")
    expect(visit.page.locator("#use pre")).to_have_count(2)
    shell, python = visit.page.locator("#use pre").all_text_contents()
    monkeypatch.chdir(tmp_path)
    subprocess.run(["sh", "-c", shell], check=True)
    said: dict[str, Any] = {"base_model": base_model}
    exec(python, said)
    assert said["model"].peft_config["default"].base_model_name_or_path == "tiny"


def test_what_failed_says_why_and_in_which_stage(visit: Visit) -> None:
    visit.open(f"jobs/{seed.FAILED}")
    failure = visit.page.locator("#failure")
    expect(failure).to_contain_text("Failed in stage prepare (user_error)")
    expect(failure).to_contain_text(seed.HOSTILE)
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


def test_a_waiting_job_shows_no_empty_figures(visit: Visit) -> None:
    visit.open(f"jobs/{seed.QUEUED}")
    expect(visit.page.locator("#waiting")).to_contain_text("in the queue")
    expect(visit.page.locator("#figures")).to_be_hidden()
    assert "\N{EN DASH}" not in visit.page.locator("header#job").inner_text()


def test_a_waiting_job_is_paused_and_resumed(visit: Visit, database: Database) -> None:
    page = visit.page
    visit.open(f"jobs/{seed.QUEUED}")
    expect(page.locator("#waiting")).to_contain_text("in the queue")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#state")).to_have_text("paused")
    expect(page.locator("#waiting")).to_have_text(re.compile(r"Resume puts it back into the queue\.$"))
    expect(page.locator("#stages .here")).to_have_count(0)
    assert _state(database, seed.QUEUED) == "paused"
    visit.open()
    expect(page.get_by_role("row").filter(has_text=seed.QUEUED)).not_to_contain_text("starting")
    visit.open(f"jobs/{seed.QUEUED}")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#state")).to_have_text("queued")


def test_a_paused_job_tells_from_where_it_goes_on(visit: Visit, database: Database) -> None:
    visit.open(f"jobs/{seed.RUNNING}")
    for step, then in ((7, "goes on from its checkpoint at step 7."), (0, "begins anew: it has no checkpoint.")):
        with database.writing() as session:
            session.execute(update(Job).where(Job.id == seed.RUNNING).values(state="paused", step=step))
        expect(visit.page.locator("#waiting")).to_contain_text(then)
    expect(visit.page.locator("#state")).to_have_text("paused finetune")


def test_what_a_job_took_is_what_it_ran(visit: Visit, database: Database) -> None:
    """The seeded one waited for 171 s before its 29."""
    page = visit.page
    expect(page.get_by_role("row").filter(has_text=seed.SUCCEEDED)).to_contain_text("took 29 s")
    visit.open(f"jobs/{seed.SUCCEEDED}")
    expect(page.locator("#facts")).to_contain_text("took 29 s")
    visit.open(f"jobs/{seed.RUNNING}")
    expect(page.locator("#facts")).to_contain_text("has run 1 min")
    visit.open(f"jobs/{seed.QUEUED}")
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(page.locator("#facts")).to_contain_text("never ran")
    expect(page.locator("#stages .left")).to_have_count(0)
    visit.open()
    expect(page.get_by_role("row").filter(has_text=seed.QUEUED)).to_contain_text("never ran")
    visit.open(f"compare?job={seed.QUEUED}&job={seed.SUCCEEDED}")
    expect(page.locator("#measured").get_by_role("row").filter(has_text="took")).to_have_text("tooknever ran29 s")


def test_a_job_that_is_stopped_says_so(visit: Visit, database: Database) -> None:
    page = visit.page
    visit.open(f"jobs/{seed.RUNNING}")
    page.get_by_role("button", name="Stop and save").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop and save").click()
    expect(page.locator("#state")).to_have_text("running finetune, stopping")
    expect(page.get_by_role("button", name="Stop and save")).to_be_hidden()
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == seed.RUNNING).values(state="succeeded", stage="publish"))
    expect(page.locator("#state")).to_have_text("succeeded stopped at step 7 of 12")
    visit.open()
    expect(page.get_by_role("row").filter(has_text=seed.RUNNING)).to_contain_text("stopped at step 7 of 12")


def test_what_cannot_be_done_now_is_said(visit: Visit, database: Database) -> None:
    page = visit.page
    visit.open(f"jobs/{seed.RUNNING}")
    expect(page.locator("#state")).to_contain_text("running")
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == seed.RUNNING).values(state="succeeded"))
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    expect(page.locator("#failure")).to_contain_text("Cancelling did not work: ")
    visit.complaints[:] = [text for text in visit.complaints if "409" not in text]


def test_files_and_models_are_listed_and_deleted(visit: Visit, database: Database) -> None:
    visit.open("storage")
    page = visit.page
    files = page.locator("#files tbody tr")
    expect(files).to_have_count(len(seed.FILES))
    row = files.filter(has_text="file-metrics")
    expect(row).to_contain_text("left by a job")
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    expect(files).to_have_count(len(seed.FILES))
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(files).to_have_count(len(seed.FILES) - 1)
    with database.reading() as session:
        assert session.get(StoredFile, "file-metrics") is None
    base = page.locator("#models tbody tr").filter(has_text="base model")
    expect(base.first).to_be_visible()
    expect(base.get_by_role("button")).to_have_count(0)
    page.locator("#files tbody tr").filter(has_text="file-training").get_by_role("button").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("alert")).to_contain_text("was not deleted")  # a job that waits trains on it
    visit.complaints[:] = [text for text in visit.complaints if "409" not in text]


def test_a_device_that_somebody_else_uses_is_not_called_free(visit: Visit, database: Database) -> None:
    visit.open("fleet")
    device = visit.page.locator("#workers .device")
    expect(device).to_contain_text("also 1 process of others")
    with database.writing() as session:
        session.execute(delete(DeviceLease))
    visit.page.reload()
    expect(device).to_contain_text("takes no job1 process of others")
    expect(device).not_to_contain_text("free")


@pytest.mark.parametrize("visit", ["narrow"], indirect=True)
def test_on_a_phone_nothing_is_cut_off_or_squeezed(visit: Visit, settings: Settings, database: Database) -> None:
    page = visit.page
    with database.writing() as session:
        team = teams.get_or_create_team(session, "seeded")
        create_key(session, team, "robot" * 12, pepper=settings.pepper, scopes=list(Scope))
    visit.open("fleet")
    reason = page.locator("#queue .reason")
    expect(reason).to_contain_text("waits for a free device")
    assert box_of(reason)["width"] > 300
    visit.open("keys")
    revoke = page.get_by_role("button", name="Revoke robot")
    expect(revoke).to_be_visible()
    assert box_of(revoke)["x"] + box_of(revoke)["width"] <= 400
    name = "node => { const text = document.createRange(); text.selectNode(node.firstChild);"
    end = revoke.locator("xpath=ancestor::tr/th").evaluate(f"{name} return text.getBoundingClientRect().right; }}")
    assert end <= box_of(revoke)["x"]
    visit.open(f"jobs/{seed.RUNNING}")
    legends = page.locator(".legend > span:visible")
    expect(legends).to_have_count(7)
    for legend in legends.all():  # one line: swatch and word stay together
        assert legend.evaluate("node => node.getClientRects().length === 1 && node.offsetHeight < 30")


def test_a_key_is_shown_once_and_revoked(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Keys").click()
    page.get_by_label("Name").fill("robot")
    page.get_by_role("button", name="Make the key").click()
    secret = page.get_by_label("The new key", exact=True)
    expect(secret).to_have_value(re.compile("jenga_[0-9a-f]+_[0-9a-f]+"))
    page.get_by_role("button", name="I have it").click()
    expect(secret).to_be_hidden()
    page.get_by_role("button", name="Revoke robot").click()
    page.get_by_role("button", name="Revoke key").click()
    expect(page.get_by_role("row").filter(has_text="robot")).to_contain_text("revoked")


def test_the_loss_is_drawn_before_any_throughput_is_known(visit: Visit, database: Database) -> None:
    with database.writing() as session:
        session.execute(update(JobMetric).values(tokens_per_second=None))
    visit.open(f"jobs/{seed.RUNNING}")
    expect(visit.page.locator("#loss-chart .trace").first).to_be_visible()


def test_a_key_that_may_only_read_changes_nothing(visit: Visit, settings: Settings, database: Database) -> None:
    with database.writing() as session:
        team = teams.get_or_create_team(session, "seeded")
        key = create_key(session, team, "reader", pepper=settings.pepper, scopes=[Scope.READ])
    visit.log_out()
    visit.log_in(key)
    visit.page.get_by_role("link", name="Keys").click()
    expect(visit.page.locator("#no-admin")).to_be_visible()
    expect(visit.page.get_by_role("button", name="Make the key")).to_be_hidden()
    expect(visit.page.get_by_role("button", name="Revoke")).to_have_count(0)
    for path, names in (
        (f"jobs/{seed.RUNNING}", ("Pause", "Stop and save", "Cancel job")),
        ("jobs/new", ("Submit job",)),
    ):
        visit.open(path)
        for name in names:
            button = visit.page.get_by_role("button", name=name)
            expect(button).to_be_disabled()
            expect(button).to_have_attribute("title", re.compile("needs a key with the scope write"))
    expect(visit.page.get_by_label("Upload…").first).to_be_disabled()


@wide_and_narrow
def test_without_anything_the_pages_teach_the_first_step(visit: Visit, keys: tuple[str, str]) -> None:
    page = visit.page
    visit.log_out()
    page.get_by_label("API key").fill(keys[1])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    expect(page.locator("#empty")).to_contain_text(f'OpenAI(base_url="{visit.url}v1"')
    assert fits(page)
    assert visit.serious_faults() == []
    visit.open("predictors")
    expect(page.get_by_role("heading", name="No predictors yet")).to_be_visible()
    assert visit.serious_faults() == []


def _advance(database: Database, *, step: int) -> None:
    with database.writing() as session:
        seed.add_step(session, seed.RUNNING, step, time.time())
        job = session.get_one(Job, seed.RUNNING)
        job.step = step
        seed.add_event(session, job, job.event_seq + 1, "info", f"Step {step} came")


def _state(database: Database, job_id: str) -> str:
    with database.reading() as session:
        job = session.get(Job, job_id)
        assert job is not None
        return job.state

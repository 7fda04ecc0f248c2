"""Every command that speaks HTTP, against the real API: what people see, and what --json prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import update

from cli import submit
from jenga_core.service.db.models import Device, FineTunedModel, Job, JobMetric
from jenga_core.service.db.session import Database
from tests.cli.conftest import CommandLine
from tests.web import seed

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A training file of three documents."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document {number} " * 40}) + "\n" for number in range(3)))
    return path


def test_list(command_line: CommandLine) -> None:
    listed = command_line.run("list").stdout
    running = next(line for line in listed.splitlines() if line.startswith(seed.RUNNING)).split()
    assert running[1:7] == ["smollm2-135m", "running,", "finetune", "7/12", "2.248", "train"]
    succeeded = next(line for line in listed.splitlines() if line.startswith(seed.SUCCEEDED)).split()
    assert succeeded[1:6] == ["smollm2-135m", "succeeded", "12/12", "2.241", "held-out"]
    assert "115 MiB, 5.3x less" in listed and "queued, no. 1 " in listed and "failed, in prepare" in listed
    assert [job["id"] for job in command_line.json("list", "--state", "failed")] == [seed.FAILED]
    assert len(command_line.json("list", "--limit", "2")) == 2


def test_list_tells_how_a_job_ended(command_line: CommandLine, database: Database) -> None:
    command_line.run("cancel", seed.QUEUED)
    with database.writing() as session:
        job = session.get_one(Job, seed.SUCCEEDED)
        job.step, job.stop_asked_at, job.suffix = 4, 1.0, "mine[1]"
        session.execute(update(JobMetric).values(valid_loss=None))
    listed = command_line.run("list").stdout
    assert "cancelled, never ran" in listed
    assert "smollm2-135m, mine[1]" in listed and "succeeded, stopped" in listed
    assert "held-out" not in listed and listed.count(" train") == 2  # what was not measured is not called a dash


def test_list_finds_jobs_by_metadata(command_line: CommandLine, rows: Path) -> None:
    submitted = ("submit", str(rows), "--model", "smollm2-135m", "--metadata", "set=a b")
    job = command_line.json(*submitted, "--metadata", "kind=test")
    assert [each["id"] for each in command_line.json("list", "--metadata", "set=a b")] == [job["id"]]
    both = ("list", "--metadata", "set=a b", "--metadata")
    assert [each["id"] for each in command_line.json(*both, "kind=test", "--state", "queued")] == [job["id"]]
    none = command_line.run(*both, "kind=other")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "No such job.\n")
    assert "expected KEY=VALUE" in command_line.run("list", "--metadata", "set").stderr


def test_lists_without_anything_say_what_makes_one(command_line: CommandLine) -> None:
    team = command_line.run("teams", "create", "empty").stdout.strip()
    command_line.environment["JENGA_API_KEY"] = command_line.run("keys", "create", "it", "--team", team).stdout.strip()
    for words, told in (
        (("list",), "jenga submit"),
        (("files", "list"), "jenga submit"),
        (("predictors", "list"), "selection.score=predicted"),
    ):
        done = command_line.run(*words)
        assert (done.returncode, done.stdout) == (0, "") and told in done.stderr
        assert command_line.json(*words) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # as in test_watch.py
def test_list_and_fleet_in_a_terminal_of_80_columns(command_line: CommandLine, database: Database) -> None:
    with database.writing() as session:
        session.execute(update(Job).values(suffix="contracts"))
    running = (seed.RUNNING, "smollm2-135m", "contracts", "running", "finetune", "7/12", "2.248")
    for command, words in (
        ("list", (*running, seed.SUCCEEDED, "succeeded", "2.241", "held-out")),
        ("fleet", ("A GPU", "online", seed.RUNNING)),
    ):
        terminal = command_line.terminal(command, columns=80)
        shown = terminal.read()
        terminal.close()
        assert [word for word in words if word not in shown] == []
        assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines())) <= 80


def test_an_address_without_http_is_told(command_line: CommandLine) -> None:
    command_line.environment["JENGA_BASE_URL"] = "127.0.0.1:8137"
    done = command_line.run("list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: JENGA_BASE_URL is '127.0.0.1:8137'; it must begin with http:// or https://\n"


def test_logs(command_line: CommandLine) -> None:
    lines = command_line.run("logs", seed.SUCCEEDED).stdout.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  Created fine-tuning job", lines[0])
    assert lines[-1].endswith("WARN: 2 rows were cut to 2048 tokens")
    done = command_line.run("logs", seed.SUCCEEDED, "--json")
    assert [json.loads(line)["level"] for line in done.stdout.splitlines()] == ["info", "info", "info", "warn"]


def test_pause_resume_stop_cancel(command_line: CommandLine) -> None:
    assert command_line.run("pause", seed.QUEUED).stdout == f"{seed.QUEUED} is paused\n"
    assert command_line.json("resume", seed.QUEUED)["jenga"]["state"] == "queued"
    refused = command_line.run("stop", seed.SUCCEEDED)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "409" in refused.stderr
    assert command_line.run("stop", seed.RUNNING).stdout.startswith(f"{seed.RUNNING} is stopping")
    assert command_line.json("stop", seed.RUNNING)["id"] == seed.RUNNING
    assert command_line.run("cancel", seed.QUEUED).stdout == f"{seed.QUEUED} is cancelled\n"


def test_submit(command_line: CommandLine, rows: Path) -> None:
    options = ("--model", "smollm2-135m", "-o", "context_length_tokens=64", "-o", "oom_policy=shrink")
    more = ("--epochs", "2", "--priority", "1", "--suffix", "mine", "--seed", "7", "--metadata", "kind=test")
    job = command_line.json("submit", str(rows), *options, *more)
    assert (job["seed"], job["user_provided_suffix"], job["metadata"]) == (7, "mine", {"kind": "test"})
    assert job["hyperparameters"]["n_epochs"] == 2
    assert (job["jenga"]["priority"], job["jenga"]["oom_policy"]) == (1, "shrink")
    assert job["jenga"]["config"]["context_length_tokens"] == 64
    again = command_line.run("submit", job["training_file"], *options)  # a file that is there need not travel again
    assert again.stdout.startswith("ftjob-")


def test_a_big_upload_shows_a_bar_and_tells_the_id(
    command_line: CommandLine, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "BIG_BYTES", 1)
    done = command_line.run("submit", str(rows), "--model", "smollm2-135m")
    assert done.stdout.startswith("ftjob-")
    assert "rows.jsonl is on the server as file-" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.jsonl", "--model", "m"), "there is no file nowhere.jsonl"),
        (("nowhere.jsonl", "--model", "m", "-o", "keep=1"), "keep: no such setting"),
        (("nowhere.jsonl", "--model", "m", "-o", "max_steps"), "expected KEY=VALUE"),
        (("nowhere.jsonl", "--model", "m", "--metadata", "x"), "expected KEY=VALUE"),
    ],
)
def test_submit_refuses_before_anything_travels(
    command_line: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    refused = command_line.run("submit", *arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert words in refused.stderr


def test_submit_names_the_bad_row(command_line: CommandLine, rows: Path) -> None:
    rows.write_text('{"text": "good"}\n{"text": 5}\n')
    refused = command_line.run("submit", str(rows), "--model", "smollm2-135m")
    assert refused.returncode == 1
    assert f"{rows}: Row 2: 'text' must be a string" in refused.stderr


@pytest.mark.parametrize("refused", ["at once", "row", "validation"])
def test_what_a_refused_submit_uploaded_is_deleted(
    command_line: CommandLine, rows: Path, tmp_path: Path, refused: str
) -> None:
    before = command_line.json("files", "list")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 5}\n')
    file, options = {
        "at once": (rows, ("-o", "context_length_tokens=1000000")),
        "row": (bad, ()),
        "validation": (rows, ("--validation", str(bad))),
    }[refused]
    done = command_line.run("submit", str(file), "--model", "smollm2-135m", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert command_line.json("files", "list") == before
    named = command_line.run("submit", "file-training", "--model", "nobody")  # what was there before stays
    assert named.returncode == 1
    assert command_line.json("files", "list") == before


def test_files_and_models_are_deleted(command_line: CommandLine, rows: Path, database: Database) -> None:
    with database.writing() as session:
        job = session.get_one(Job, seed.SUCCEEDED)
        name = f"ft:{job.model}:seeded:a:b"
        session.add(FineTunedModel(id=name, team_id=job.team_id, job_id=job.id, base_model=job.model, created_at=1.0))
    assert command_line.run("models", "delete", name).stdout == f"{name} is deleted\n"
    refused = command_line.run("models", "delete", "smollm2-135m")
    assert (refused.returncode, "only fine-tuned models can be deleted" in refused.stderr) == (1, True)
    done = command_line.run("files", "delete", "file-metrics", "file-nothing", "file-adapter")
    assert (done.returncode, done.stdout) == (1, "file-metrics is deleted\n")
    assert "No such file: 'file-nothing'" in done.stderr and "`jenga files list`" in done.stderr
    assert "GET" not in done.stderr
    (deleted,) = command_line.json("files", "delete", "file-adapter")
    assert (deleted["id"], deleted["deleted"]) == ("file-adapter", True)
    in_use = command_line.run("files", "delete", "file-training")
    assert (in_use.returncode, "is needed by job" in in_use.stderr) == (1, True)


def test_estimate(command_line: CommandLine, rows: Path) -> None:
    options = ("--model", "smollm2-135m", "-o", "context_length_tokens=256")
    before = command_line.json("files", "list")
    answer = command_line.json("estimate", str(rows), *options)
    assert (answer["rows"], answer["valid"]) == (3, True)
    assert command_line.run("estimate", str(rows), "--model", "nobody").returncode == 1
    assert command_line.json("files", "list") == before  # what was uploaded for it is gone
    file_id = command_line.json("submit", str(rows), *options)["training_file"]
    shown = command_line.run("estimate", file_id, *options).stdout
    for words in ("rows     3", "as asked", "dense LoRA ", "A GPU", "longest context"):
        assert words in shown
    recomputed = command_line.run("estimate", file_id, *options, "-o", "recompute=full").stdout
    assert "dense LoRA, recompute full" in recomputed and "\nrecompute full " not in recomputed
    assert "of the host" in recomputed and "\nrecompute full, offload" in recomputed


@pytest.mark.parametrize(
    ("gpu_bytes", "with_cpu", "said"),
    [
        (80 * 2**30, False, ""),
        (2**20, True, "the job needs about"),
        (2**20, False, "the job needs about"),
    ],
)
def test_estimate_of_a_job_that_does_not_fit(
    command_line: CommandLine, database: Database, rows: Path, gpu_bytes: int, with_cpu: bool, said: str
) -> None:
    with database.writing() as session:
        session.get_one(Device, "GPU-1").memory_bytes = gpu_bytes
        if with_cpu:
            rest = {"memory_bytes": 2**20, "memory_used_bytes": 0, "foreign_processes": []}
            session.add(Device(uuid="CPU-1", worker_id="worker-1", kind="cpu", name="A CPU", **rest))
    done = command_line.run("estimate", str(rows), "--model", "smollm2-135m", "-o", "context_length_tokens=256")
    assert (done.returncode, said in done.stderr, bool(done.stderr)) == (int(bool(said)), True, bool(said))


def test_models_predictors_and_fleet(command_line: CommandLine) -> None:
    assert [model["id"] for model in command_line.json("models", "list")] == ["smollm2-135m"]
    assert "91.7%" in command_line.run("predictors", "list").stdout
    assert command_line.json("predictors", "list")[0]["job_id"] == seed.SUCCEEDED
    shown = command_line.run("fleet").stdout
    assert seed.RUNNING in shown and "A GPU" in shown and seed.QUEUED in shown
    assert command_line.json("fleet")["workers"][0]["devices"][0]["held_by"]["job_id"] == seed.RUNNING


def test_keys(command_line: CommandLine) -> None:
    made = command_line.run("keys", "create", "robot", "--scope", "read")
    assert made.stdout.startswith("jenga_") and "shown this once" in made.stderr
    robot = next(key for key in command_line.json("keys", "list") if key["name"] == "robot")
    assert robot["scopes"] == ["read"]
    assert command_line.run("keys", "revoke", robot["id"]).stdout == f"{robot['id']} (robot) is revoked\n"
    assert "revoked" in command_line.run("keys", "list").stdout
    command_line.environment["JENGA_API_KEY"] = made.stdout.strip()
    assert command_line.run("list").returncode == 1


def test_teams(command_line: CommandLine) -> None:
    made = command_line.run("teams", "create", "vision", "--running-jobs", "2")
    assert made.stdout.startswith("org-")
    teams = {team["name"]: team for team in command_line.json("teams", "list")}
    assert teams["vision"]["quotas"]["running_jobs"] == 2
    assert "0 of 2" in command_line.run("teams", "list").stdout
    key = command_line.run("keys", "create", "first", "--team", made.stdout.strip())
    command_line.environment["JENGA_API_KEY"] = key.stdout.strip()
    assert command_line.json("list") == []


def test_the_shell_completes_jobs_and_models(command_line: CommandLine) -> None:
    assert command_line.complete("jenga watch ftjob-r").stdout.split() == [seed.RUNNING]
    assert command_line.complete("jenga submit x --model sm").stdout.split() == ["smollm2-135m"]


def test_the_shell_completes_nothing_without_a_service(command_line: CommandLine) -> None:
    command_line.environment["JENGA_BASE_URL"] = "http://127.0.0.1:1"
    done = command_line.complete("jenga watch ftjob-")
    assert (done.stdout.strip(), done.stderr) == ("", "")

"""Following a job: in a terminal, through a pipe, over a restart of the service, and after Ctrl-C."""

from __future__ import annotations

import json
import time

import pexpect
import pytest

from cli import watch
from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from tests.cli.conftest import CommandLine
from tests.web import seed

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    # Python 3.12 and newer warn of a pseudo-terminal's fork beside the API's thread; the child replaces itself at once.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def test_a_terminal_shows_a_bar_loss_memory_and_speed(command_line: CommandLine, database: Database) -> None:
    watched = command_line.terminal("watch", seed.RUNNING)
    watched.expect("WARN: 2 rows were cut to 2048 tokens")  # an event scrolls by
    watched.expect("running.*finetune")
    watched.expect(r"7/12  58%  1 min [1-5]\d s")  # step 1 was done 75 seconds ago, whenever the watching began
    watched.expect(r"loss 2\.\d+ ")
    watched.expect("431 tokens/s")
    watched.expect(r"activations 115 MiB, 5\.3x less than dense")
    _succeed(database)
    watched.expect("12/12  100%")
    watched.expect("ft:smollm2-135m:seeded::done")
    watched.expect(pexpect.EOF)
    watched.close()
    assert watched.exitstatus == 0


def test_ctrl_c_leaves_the_job_running_and_says_so(command_line: CommandLine, database: Database) -> None:
    watched = command_line.terminal("watch", seed.RUNNING)
    watched.expect("7/12")
    watched.sendintr()
    watched.expect("No longer watching. The job goes on")
    watched.expect(f"jenga cancel {seed.RUNNING}")
    watched.expect(pexpect.EOF)
    watched.close()
    assert watched.exitstatus == watch.EXIT_INTERRUPTED
    with database.reading() as session:
        assert session.get_one(Job, seed.RUNNING).state == "running"


def test_a_restart_of_the_service_is_waited_for(command_line: CommandLine, database: Database) -> None:
    watched = command_line.terminal("watch", seed.RUNNING)
    watched.expect("7/12")
    command_line.server.stop()
    watched.expect("the service is away, trying again")
    command_line.server.start()
    _succeed(database)
    watched.expect("ft:smollm2-135m:seeded::done")
    watched.expect(pexpect.EOF)
    watched.close()
    assert watched.exitstatus == 0


def test_a_pipe_gets_events_and_no_bar(command_line: CommandLine, database: Database) -> None:
    _succeed(database)
    done = command_line.run("watch", seed.RUNNING)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Created fine-tuning job" in lines[0] and lines[-1] == "ft:smollm2-135m:seeded::done"
    assert "\x1b" not in done.stdout and "12/12" not in done.stdout


def test_json_is_one_object_a_line_and_the_last_is_the_job(command_line: CommandLine) -> None:
    done = command_line.run("watch", seed.FAILED, "--json")
    *events, job = map(json.loads, done.stdout.splitlines())
    assert {event["object"] for event in events} == {"fine_tuning.job.event"}
    assert (job["object"], job["id"], job["status"]) == ("fine_tuning.job", seed.FAILED, "failed")
    assert done.returncode == 3


def test_exit_codes_tell_failure_from_cancellation(command_line: CommandLine) -> None:
    failed = command_line.run("watch", seed.FAILED)
    assert failed.returncode == 3
    assert f"{seed.FAILED} failed: Row 7 could not be read" in failed.stderr
    assert command_line.run("cancel", seed.QUEUED).returncode == 0
    cancelled = command_line.run("watch", seed.QUEUED)
    assert (cancelled.returncode, cancelled.stderr.strip()) == (4, f"{seed.QUEUED} was cancelled")


def test_a_job_that_is_not_there_is_an_error(command_line: CommandLine) -> None:
    done = command_line.run("watch", "ftjob-none")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "ftjob-none" in done.stderr


def test_logs_follow_until_the_end(command_line: CommandLine, database: Database) -> None:
    following = command_line.terminal("logs", seed.RUNNING, "--follow")
    following.expect("WARN: 2 rows were cut")
    _succeed(database)
    following.expect("The end")
    following.expect(pexpect.EOF)
    following.close()
    assert following.exitstatus == 0


def _succeed(database: Database) -> None:
    with database.writing() as session:
        job = session.get_one(Job, seed.RUNNING)
        for step in range(8, 13):
            seed.add_step(session, job.id, step, time.time())
        job.state, job.stage, job.step, job.finished_at = "succeeded", "publish", 12, time.time()
        job.fine_tuned_model = "ft:smollm2-135m:seeded::done"
        seed.add_event(session, job, job.event_seq + 1, "info", "The end")

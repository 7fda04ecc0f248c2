"""`jenga up` as a user runs it: a real process, its one line, its answers, its end."""

from __future__ import annotations

import json
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.tiny import save_tiny_model
from tests.support.up import STOP_SECONDS, Up, run, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(
        tmp_path_factory.mktemp("up") / ("a data folder that is so long that no socket could lie in it" * 2)
    ) as up:
        yield up


def test_the_line_says_where_and_the_service_is_healthy(service: Up) -> None:
    assert service.line.startswith("Jenga is ready at http://127.0.0.1:")
    assert httpx.get(f"{service.url}/healthz").status_code == 200


def test_the_first_key_opens_and_another_does_not(service: Up) -> None:
    assert service.get("/v1/models", service.key).status_code == 200
    assert service.get("/v1/models", "wrong").status_code == 401


@pytest.mark.parametrize("secret", ["admin.key", "secret.key"])
def test_secrets_are_for_their_owner_alone(service: Up, secret: str) -> None:
    assert stat.S_IMODE((service.data_dir / secret).stat().st_mode) == 0o600


def test_it_is_the_ancestor_of_api_workers_and_broker(service: Up) -> None:
    commands = [" ".join(process.cmdline()) for process in service.descendants()]
    for part in ("cli.serve", "--queues run", "--queues ops", "valkey-server"):
        assert any(part in command for command in commands), (part, commands)


def test_a_second_one_on_the_same_folder_is_refused(service: Up) -> None:
    second = run("up", "--port", "0", "--data-dir", str(service.data_dir))
    assert (second.returncode, second.stdout) == (1, "")
    assert f"already runs on {service.data_dir} (process {service.process.pid})" in second.stderr


def test_subcommands_find_the_service_by_its_data_folder(service: Up) -> None:
    cancelled = run("cancel", "ftjob-none", "--data-dir", str(service.data_dir))
    assert cancelled.returncode == 1
    assert f"{service.url} answered 404" in cancelled.stderr
    listed = run("list", "--data-dir", str(service.data_dir))
    assert (listed.returncode, listed.stdout) == (0, "")
    assert listed.stderr.startswith("No jobs yet.")


def test_submit_says_why_a_job_is_refused(service: Up, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n')
    refused = run("submit", str(rows), "--model", "no-such-model", "--data-dir", str(service.data_dir))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no-such-model" in refused.stderr
    rows.write_text('{"text": 1}\n')
    refused = run("submit", str(rows), "--model", "no-such-model", "--data-dir", str(service.data_dir))
    assert "Row 1" in refused.stderr


def test_a_job_from_the_command_line(service: Up, tmp_path: Path) -> None:
    """A model added while the service is up, a real trainer, an adapter at the end."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{number} of many documents " * 20}) + "\n" for number in range(4)))
    here = ("--data-dir", str(service.data_dir))
    added = run("models", "add", str(save_tiny_model(tmp_path / "tiny")), *here)
    assert added.stdout.startswith("tiny added: llama"), added.stderr
    settings = ("max_steps=2", "context_length_tokens=128", "selection.block_tokens=16")
    options = [word for setting in settings for word in ("--option", setting)]
    submitted = run("submit", str(rows), "--model", "tiny", "--validation", str(rows), *options, *here)
    job_id = submitted.stdout.strip()
    assert job_id.startswith("ftjob-"), submitted.stderr

    watched = run("watch", job_id, *here)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert watched.stdout.index(f"Created fine-tuning job: {job_id}") < watched.stdout.index("Step 2/2")
    assert watched.stdout.splitlines()[-1].startswith("ft:tiny:")
    assert "succeeded" in run("list", *here).stdout
    assert "already succeeded" in run("cancel", job_id, *here).stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("up", "--port", str(port), "--data-dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert f"port {port}" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as up:
        started = up.descendants()
        socket_path = Path((tmp_path / "broker.url").read_text().strip().removeprefix("redis+socket://"))
        up.process.send_signal(number)
        assert up.process.wait(STOP_SECONDS) == 0
    assert [process for process in started if process.is_running()] == []
    assert not socket_path.parent.exists()
    assert not (tmp_path / "service.url").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_nothing_outlives_it_when_it_is_killed(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        started = up.descendants()
        up.process.kill()
    _, alive = psutil.wait_procs(started, timeout=STOP_SECONDS)
    assert alive == []


def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        api = _process(up, lambda command: "cli.serve" in command)
        api.kill()
        psutil.wait_procs([api], timeout=STOP_SECONDS)
        assert up.get("/v1/models", up.key).status_code == 200  # waits in the listener's backlog
        assert _process(up, lambda command: "cli.serve" in command).pid != api.pid


def _process(up: Up, matches: Callable[[str], bool]) -> psutil.Process:
    return next(process for process in up.descendants() if matches(" ".join(process.cmdline())))

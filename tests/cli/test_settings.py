"""Where a subcommand finds its data folder, its service and its key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.connection import DEFAULT_URL, Service, address_file, base_url
from cli.main import app
from cli.settings import settings_of
from jenga_core.errors import AuthenticationError

COMMANDS = (
    "up", "migrate", "doctor", "train", "models add", "models list", "models delete", "submit", "estimate", "watch",
    "logs", "list", "pause", "resume", "stop", "cancel", "download", "files list", "files delete", "predictors list",
    "fleet", "keys list", "keys create", "keys revoke", "teams list", "teams create",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JENGA_DATA_DIR", "JENGA_BASE_URL", "JENGA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_option_wins_over_the_variable_and_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings_of(None).data_dir == tmp_path / ".local/share/jenga"
    monkeypatch.setenv("JENGA_DATA_DIR", str(tmp_path / "variable"))
    assert settings_of(None).data_dir == tmp_path / "variable"
    assert settings_of(tmp_path / "option").data_dir == tmp_path / "option"


def test_a_relative_data_dir_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_of(Path("here")).data_dir == tmp_path / "here"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_takes_data_dir_and_json_after_its_name(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "--data-dir" in result.output
    assert "--json" in result.output


def test_data_dir_before_the_subcommand_is_refused(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["--data-dir", str(tmp_path), "list"]).exit_code == 2


def test_address_comes_from_the_variable_then_the_running_service_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path)
    assert base_url(settings) == DEFAULT_URL
    address_file(settings).write_text("http://127.0.0.1:9999\n")
    assert base_url(settings) == "http://127.0.0.1:9999"
    monkeypatch.setenv("JENGA_BASE_URL", "http://jenga.example/v1/")
    assert base_url(settings) == "http://jenga.example"


def test_without_a_key_the_error_says_where_keys_are(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match=r"JENGA_API_KEY.*admin\.key"):
        Service(settings_of(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("JENGA_MAX_ATTEMPTS", "many", "JENGA_MAX_ATTEMPTS: Input should be a valid integer"),
        ("JENGA_DATABASE_URL", "mysql://host/name", "expected postgresql:// or sqlite://"),
        ("JENGA_DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/name", "me:***@127.0.0.1:1/name cannot be used"),
        ("JENGA_BROKER_URL", "redis://127.0.0.1:1/0", "the broker of JENGA_BROKER_URL does not answer"),
    ],
)
def test_what_up_cannot_stand_on_is_one_error_and_exit_code_1(
    tmp_path: Path, name: str, value: str, words: str
) -> None:
    environment = {**os.environ, name: value}
    argv = [sys.executable, "-m", "cli.main", "up", "--port", "0", "--data-dir", str(tmp_path)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and words in done.stderr


def test_an_unreachable_service_is_one_line_and_exit_code_5(tmp_path: Path) -> None:
    variables = {"JENGA_API_KEY": "key", "JENGA_BASE_URL": "http://127.0.0.1:1"}
    result = CliRunner().invoke(app, ["list", "--data-dir", str(tmp_path)], env=variables)
    assert result.exit_code == 5
    assert result.stderr.startswith("Error: cannot reach Jenga at http://127.0.0.1:1")
    assert "Traceback" not in result.output

"""The real API with made-up rows, and subcommands run against it: through a pipe, or in a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pytest
from typer.testing import CliRunner

from cli.main import app
from jenga_core.service.accounts.keys import create_key
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings
from tests.support.up import UNSET
from tests.web import base_models, seed
from tests.web.server import Server

SECONDS = 60
"""For a subcommand to end, or to show what is expected, on a busy machine."""


@dataclass
class CommandLine:
    """Subcommands beside a running API."""

    server: Server
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """To the end, without a terminal; in this process, which saves starting another."""
        done = CliRunner().invoke(app, arguments, env=self.environment, catch_exceptions=False)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    def complete(self, words: str) -> subprocess.CompletedProcess[str]:
        """What bash is offered behind these words, by the protocol of the completion that `jenga` installs."""
        asked = {"_JENGA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        argv = [sys.executable, "-m", "cli.main"]
        return subprocess.run(
            argv, env={**self.environment, **asked}, capture_output=True, text=True, timeout=SECONDS, check=True
        )

    def json(self, *arguments: str) -> Any:
        """What it prints with --json; it must succeed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def terminal(self, *arguments: str, columns: int = 100) -> pexpect.spawn:
        """In a pseudo-terminal; its exit code is `exitstatus` after `close()`."""
        argv = ["-m", "cli.main", *arguments]
        return pexpect.spawn(
            sys.executable, argv, env=self.environment, encoding="utf-8", timeout=SECONDS, dimensions=(24, columns),
            preexec_fn=_hears_ctrl_c,
        )  # fmt: skip


def _hears_ctrl_c() -> None:
    """As in every terminal, even where the tests themselves were started in the background and do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def command_line(tmp_path: Path, settings: Settings, database: Database) -> Iterator[CommandLine]:
    """With the rows of tests/web/seed.py, and a key that may do everything."""
    with database.writing() as session:
        team = create_team(session, "seeded")
        base_models.write(settings, "smollm2-135m", base_models.SMOLLM2_135M)
        seed.write_files(settings)
        seed.seed(session, team)
        key = create_key(session, team, "ada", pepper=settings.pepper)
    server = Server(settings)
    server.start()
    own = {"JENGA_BASE_URL": server.url, "JENGA_API_KEY": key, "JENGA_DATA_DIR": str(tmp_path / "client")}
    foreign = {*UNSET, "COLUMNS", "LINES"}  # pytest's own terminal, which xdist tells its workers of
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    yield CommandLine(server, {**environment, **own, "TERM": "xterm-256color"})
    server.stop()

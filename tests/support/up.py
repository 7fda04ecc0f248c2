"""A running `jenga up` of a test's own, and subcommands beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

READY_SECONDS = 150
STOP_SECONDS = 60
UNSET = ("JENGA_DATABASE_URL", "JENGA_BROKER_URL", "JENGA_SECRET_KEY", "JENGA_BASE_URL", "JENGA_API_KEY")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in UNSET}


@dataclass
class Up:
    """A running `jenga up`."""

    process: subprocess.Popen[str]
    data_dir: Path
    line: str
    """What it printed when it was ready."""

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return next(word for word in self.line.split() if word.startswith("http://"))

    @property
    def key(self) -> str:
        """The first key."""
        return (self.data_dir / "admin.key").read_text().strip()

    def descendants(self) -> list[psutil.Process]:
        """Every process it started, directly or not."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def get(self, path: str, key: str) -> httpx.Response:
        """A GET with a key."""
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def jenga(*arguments: str) -> list[str]:
    """The argv of a subcommand."""
    return [sys.executable, "-m", "cli.main", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a subcommand to its end, without a terminal."""
    return subprocess.run(jenga(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=READY_SECONDS)


@contextmanager
def running(data_dir: Path) -> Iterator[Up]:
    """Start it on a free port, wait for its line, and leave nothing behind."""
    argv = jenga("up", "--port", "0", "--data-dir", str(data_dir))
    process = subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield Up(process, data_dir, line)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(STOP_SECONDS)

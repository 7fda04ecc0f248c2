"""What a job left, on the way to whoever wants it; and the list of all files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from jenga_core.service.files.store import FileStore
from jenga_core.service.settings import Settings
from tests.cli.conftest import CommandLine
from tests.web import seed

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def archive(*members: tuple[str, bytes]) -> bytes:
    """A .tar.gz."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def leave(settings: Settings, **contents: bytes) -> None:
    """The bytes of the result files of the job that succeeded."""
    for name, content in contents.items():
        with FileStore(settings).writing(f"file-{name}") as file:
            file.write(content)


def test_the_results_of_a_job(command_line: CommandLine, settings: Settings, tmp_path: Path) -> None:
    leave(settings, metrics=b"step\n1\n", adapter=archive(("adapter_config.json", b"{}")))
    folder = tmp_path / "new" / "result"
    done = command_line.run("download", seed.SUCCEEDED, str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / name) for name in ("metrics.csv", "adapter.tar.gz", "adapter")]
    assert (folder / "metrics.csv").read_bytes() == b"step\n1\n"
    assert (folder / "adapter" / "adapter_config.json").read_bytes() == b"{}"
    assert len(list(folder.iterdir())) == 3
    (folder / "metrics.csv").write_text("mine")
    again = command_line.run("download", seed.SUCCEEDED, str(folder))
    assert again.returncode == 1
    assert f"{folder / 'metrics.csv'}, " in again.stderr and "name another folder" in again.stderr
    assert (folder / "metrics.csv").read_text() == "mine"


def test_half_of_the_results_is_none(command_line: CommandLine, settings: Settings, tmp_path: Path) -> None:
    leave(settings, metrics=b"step\n1\n")
    failed = command_line.run("download", seed.SUCCEEDED, str(tmp_path / "result"))
    assert failed.returncode == 1
    assert "404" in failed.stderr and "file-adapter" in failed.stderr
    assert not list((tmp_path / "result").iterdir())


def test_a_job_without_results(command_line: CommandLine, tmp_path: Path) -> None:
    refused = command_line.run("download", seed.RUNNING, str(tmp_path / "result"))
    assert refused.returncode == 1
    assert f"{seed.RUNNING} is running and has no result files" in refused.stderr
    assert not (tmp_path / "result").exists()


def test_a_job_that_succeeded_says_how_to_download(command_line: CommandLine) -> None:
    watched = command_line.run("watch", seed.SUCCEEDED)
    assert watched.stdout.splitlines()[-1] == "ft:smollm2-135m:default::success"
    assert f"`jenga download {seed.SUCCEEDED}`" in watched.stderr


def test_files_list(command_line: CommandLine) -> None:
    lines = command_line.run("files", "list").stdout.splitlines()
    metrics = next(line for line in lines if line.startswith("file-metrics")).split()
    assert metrics[1:6] == ["metrics.csv", "fine-tune-results", "2.06", "KiB", "processed"]
    assert len(command_line.json("files", "list")) == len(seed.FILES)

"""A checkpoint is all there or not there, and what is not what was written is found out."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from jenga_core.finetuning import checkpoints
from jenga_core.finetuning.checkpoints import CheckpointDamaged, DiskFull, newest_whole, verify, whole_or_not, writing


def save(folder: Path, step: int, content: bytes = b"weights") -> Path:
    with writing(folder, step, need_bytes=100) as parent:
        made = parent / f"checkpoint-{step}"
        (made / "jenga").mkdir(parents=True)
        (made / "adapter.bin").write_bytes(content)
        (made / "jenga" / "state.json").write_text("{}")
    return folder / f"checkpoint-{step}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_appears_whole_and_the_two_newest_stay(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        verify(save(tmp_path, step))
    assert names(tmp_path) == {"checkpoint-4", "checkpoint-10"}
    assert [path.name for path in whole_or_not(tmp_path)] == ["checkpoint-10", "checkpoint-4"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    save(tmp_path, 2)

    def fail() -> None:
        with writing(tmp_path, 4, need_bytes=1) as parent:
            (parent / "checkpoint-4").mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == {"checkpoint-2"}


def test_a_step_that_is_repeated_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 2, b"first")
    verify(save(tmp_path, 2, b"second"))
    assert (tmp_path / "checkpoint-2" / "adapter.bin").read_bytes() == b"second"
    assert names(tmp_path) == {"checkpoint-2"}


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / checkpoints.PARTIAL / "checkpoint-9").mkdir(parents=True)
    save(tmp_path, 2)
    assert names(tmp_path) == {"checkpoint-2"}


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10 * 2**20))
    with pytest.raises(
        DiskFull, match=r"checkpoint of step 4 needs about 0 MiB and 64 MiB to spare, but .* 10 MiB free"
    ):
        save(tmp_path, 4)
    assert names(tmp_path) == {"checkpoint-2"}


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DiskFull, match=r"checkpoint of step 4 could not be written.*No space left on device.*free some space"
    ):
        save(tmp_path, 4)
    assert names(tmp_path) == {"checkpoint-2"}


@pytest.mark.parametrize("damage", ["a byte", "a missing file", "no manifest", "a manifest that is none", "cut off"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, damage: str) -> None:
    older, newest = save(tmp_path, 2), save(tmp_path, 4)
    match damage:
        case "a byte":
            (newest / "adapter.bin").write_bytes(b"Weights")
        case "a missing file":
            (newest / "jenga" / "state.json").unlink()
        case "no manifest":
            (newest / checkpoints.MANIFEST).unlink()
        case "a manifest that is none":
            (newest / checkpoints.MANIFEST).write_text("[]")
        case "cut off":
            os.truncate(newest / "adapter.bin", 3)
    with pytest.raises(CheckpointDamaged, match="checkpoint-4"):
        verify(newest)
    found, problems = newest_whole([newest, older])
    assert found == older
    assert len(problems) == 1
    assert newest_whole([newest]) == (None, problems)
    assert newest_whole([]) == (None, [])

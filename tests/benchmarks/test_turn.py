"""Rows' own processes."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.plans import row
from benchmarks.speed import RowFailed, Turn, _turn


def test_a_row_comes_out_of_its_own_process() -> None:
    turn = _turn(row("tiny", 128, "lora"), None, 1)
    measured = turn.take(120)
    turn.dismiss()
    assert (measured["policy"], measured["tokens"]) == ("lora", 128)
    assert turn.process.returncode == 0


def test_ceilings_come_out_of_their_own_process() -> None:
    turn = _turn(row("tiny", 128, "lora"), "tiny", 1)
    measured = turn.take(120)
    turn.dismiss()
    assert [tokens for tokens, _, _ in measured["attention_tflops"]] == [64, 128]
    assert all(forward > 0 and backward > 0 for _, forward, backward in measured["attention_tflops"])


def test_a_process_that_is_not_needed_ends_without_a_row() -> None:
    turn = _turn(row("tiny", 128, "lora"), None, 1)
    turn.dismiss()
    assert turn.process.returncode == 1


def test_the_words_of_a_process_that_dies_are_kept() -> None:
    turn = Turn("no such benchmark")
    with pytest.raises(RowFailed, match="usage: python -m benchmarks"):
        turn.take(120)
    turn.dismiss()


def test_a_process_that_takes_too_long_is_ended() -> None:
    turn = _turn(row("tiny", 128, "lora"), None, 1)
    with pytest.raises(subprocess.TimeoutExpired):
        turn.take(0.01)
    assert turn.process.returncode != 0
    turn.dismiss()

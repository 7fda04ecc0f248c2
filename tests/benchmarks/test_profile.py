"""Where a step's time and memory go; on a CPU the memory that autograd keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import profile, profile_page
from benchmarks.plans import row
from benchmarks.step import Spec
from benchmarks.trace import PHASES

TIME = {
    "span_ms": 100.0,
    "idle_ms": 2.0,
    "ms_by_kind": {"GEMM": {"forward": 40.0, "backward": 50.0}, "norm": {"forward": 8.0}},
    "kernels": [{"kind": "GEMM", "name": "nvjet|" + 80 * "x", "calls": 3, "ms": 90.0}],
}


def measured(policy: str) -> dict[str, Any]:
    return profile.measure(row("tiny", 256, policy), torch.device("cpu"))


def test_all_phases_are_weighed() -> None:
    assert tuple(measured("lora")["memory"]["phases"]) == PHASES


def test_kept_storages_are_those_of_the_forward_pass() -> None:
    """Checkpointing keeps little more than a row per layer; what backward makes again is not counted."""
    plain, checkpointed = measured("lora")["memory"], measured("lora+checkpoint")["memory"]
    assert checkpointed["kept_bytes"] < plain["kept_bytes"] / 3
    assert plain["kept_bytes"] >= sum(kept["bytes"] for kept in plain["kept"])
    assert plain["frozen_weights_bytes"] > plain["adapter_bytes"] > 0


def test_the_decoder_is_as_before_afterwards() -> None:
    found: list[Any] = []
    original = profile.in_phases

    def watched(step: Any, phase: Any) -> None:
        decoder = step.model.get_base_model().get_decoder()
        before = decoder.forward
        original(step, phase)
        found.append(decoder.forward == before)

    profile.in_phases = watched
    try:
        measured("jenga")
    finally:
        profile.in_phases = original
    assert found == [True]


def test_profiles_come_out_of_their_own_process_and_make_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "tiny", "--tokens", "128", "--policies", "lora", "--results", str(tmp_path)]
    assert profile.main(arguments) == 0
    assert "## tiny, 128 tokens: lora, recompute none" in capsys.readouterr().out
    found = json.loads((tmp_path / "profile-tiny-128-lora-1-none-cpu.json").read_text())
    assert Spec.of(found) == row("tiny", 128, "lora")
    assert profile.main(["--results", str(tmp_path), "--docs", str(tmp_path / "profile.md")]) == 0
    assert "## tiny, 128 tokens: lora" in (tmp_path / "profile.md").read_text()


def test_a_profile_that_fails_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny-opt", "--tokens", "128", "--policies", "lora+liger"]
    assert profile.main([*arguments, "--results", str(tmp_path)]) == 1
    assert "Liger has no kernels for opt" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_page_without_profiles_says_so() -> None:
    assert "No profile has been measured yet." in profile_page.markdown([])


def test_times_are_a_table_of_kinds_by_phase() -> None:
    page = profile_page.section({**measured("lora"), "time": TIME})
    assert "| GEMM | 40.0 |  | 50.0 |  | 90.0 | 90.0% |" in page
    assert "| idle |  |  |  |  | 2.0 | 2.0% |" in page
    assert "`nvjet/xxx" in page

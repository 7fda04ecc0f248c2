"""Rows that resume, fail alone, and stop at the deadline; no model is run here."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ceilings, environment, plans, speed
from benchmarks.contenders import POLICIES, RECOMPUTE
from benchmarks.processes import Failed
from benchmarks.speed import ResultsFile, expected_seconds
from benchmarks.step import Spec

CEILINGS = {
    "hardware": "cpu",
    "gemm_tflops": {"64": 1.0},
    "copy_gb_per_second": 1.0,
    "attention_tflops": [[64, 500.0, 400.0]],
}
LORA, JENGA = plans.row("tiny", 512, "lora"), plans.row("tiny", 512, "jenga")


def measured(spec: Spec, **changed: Any) -> dict[str, Any]:
    return {
        **spec.__dict__,
        **environment.describe(),
        "step_ms_p20": 9.0,
        "step_ms_p50": 10.0,
        "step_ms_p80": 11.0,
        "peak_bytes": 2**30,
        "reserved_bytes": 2**30,
        "allocator": "host",
        "attention_backends": {"cudnn": 4},
        "loss": 6.0,
        **changed,
    }


class Fake:
    """Measures at once, or does what `outcomes` says for a policy."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.outcomes: dict[str, Any] = {}
        self.on_gpu: dict[int | None, int] = {}
        self.both = threading.Barrier(2)

    def __call__(
        self, measure: Any, what: Any, *arguments: Any, seconds: float | None = None, gpu: int | None = None
    ) -> dict[str, Any]:
        name = "ceilings" if measure is ceilings.measure else what.policy
        self.started.append(name)
        self.on_gpu[gpu] = self.on_gpu.get(gpu, 0) + 1
        if gpu is not None:
            self.both.wait(timeout=10)  # the other GPU measures, too
        outcome = self.outcomes.get(name)
        if isinstance(outcome, Exception):
            raise outcome
        return CEILINGS if name == "ceilings" else measured(what, **(outcome or {}))


@pytest.fixture(autouse=True)
def turns(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(speed, "measured_apart", fake)
    monkeypatch.setattr(environment, "hardware_slug", lambda: "h100")
    return fake


def run(folder: Path, *specs: Spec, seconds: float = 1000, again: bool = False) -> int:
    return speed.run(list(specs), folder, timed_steps=5, deadline=time.monotonic() + seconds, again=again)


def test_rows_are_kept_with_ceilings_and_derived_columns(tmp_path: Path) -> None:
    assert run(tmp_path, LORA, JENGA) == 0
    content = json.loads((tmp_path / "speed-tiny-h100.json").read_text())
    assert content["ceilings"] == CEILINGS
    lora, jenga = content["rows"]
    assert (lora["policy"], jenga["policy"]) == ("lora", "jenga")
    assert jenga["time_of_lora"] == 1
    assert jenga["saved_of_lora"] == 0
    assert 0 < jenga["roofline_ms"] < lora["roofline_ms"]


def test_gpus_share_the_rows_and_each_measures_one_at_a_time(tmp_path: Path, turns: Fake) -> None:
    specs = [LORA, JENGA, replace(JENGA, keep_fraction=0.2)]  # and the ceilings
    deadline = time.monotonic() + 1000
    assert speed.run(specs, tmp_path, timed_steps=5, deadline=deadline, again=False, gpus=2) == 0
    assert turns.on_gpu == {0: 2, 1: 2}
    assert len(ResultsFile(tmp_path, "tiny").rows) == 3


def test_what_is_there_is_not_measured_again(tmp_path: Path, turns: Fake) -> None:
    run(tmp_path, LORA)
    turns.started.clear()
    assert run(tmp_path, LORA, JENGA) == 0
    assert turns.started == ["jenga"]
    assert run(tmp_path, LORA, again=True) == 0
    assert turns.started == ["jenga", "lora"]


def test_another_commit_makes_our_rows_stale_and_no_others(
    tmp_path: Path, turns: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JENGA_COMMIT", "aaaaaaa")
    run(tmp_path, LORA, JENGA)
    turns.started.clear()
    monkeypatch.setenv("JENGA_COMMIT", "bbbbbbb")
    run(tmp_path, LORA, JENGA)
    assert turns.started == ["jenga"]
    assert [row["commit"] for row in ResultsFile(tmp_path, "tiny").rows] == ["aaaaaaa", "bbbbbbb"]
    turns.started.clear()
    monkeypatch.setenv("JENGA_COMMIT", "ccccccc")
    arguments = ["--models", "tiny", "--tokens", "512", "--policies", "lora", "jenga", "--recompute", "none", "full"]
    assert speed.main([*arguments, "--any-commit", "--results", str(tmp_path)]) == 0
    assert turns.started == ["jenga"]  # with recompute full


def test_another_version_makes_every_row_stale(tmp_path: Path, turns: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, LORA)
    turns.started.clear()
    versions = {**environment.versions(), "torch": "3.0"}
    monkeypatch.setattr(environment, "versions", lambda: versions)
    run(tmp_path, LORA)
    assert turns.started == ["lora"]


def test_a_row_that_fails_leaves_the_others(tmp_path: Path, turns: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    turns.outcomes = {"lora": Failed("ValueError: no such thing")}
    assert run(tmp_path, LORA, JENGA) == 1
    assert "ValueError: no such thing" in capsys.readouterr().out
    assert [row["policy"] for row in ResultsFile(tmp_path, "tiny").rows] == ["jenga"]


def test_a_row_that_outlives_the_deadline_counts_as_failed(tmp_path: Path, turns: Fake) -> None:
    turns.outcomes = {"lora": TimeoutError("not done after 1 s")}
    assert run(tmp_path, LORA) == 1
    assert ResultsFile(tmp_path, "tiny").rows == []


def test_out_of_memory_is_a_result(tmp_path: Path, turns: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    row = measured(LORA, out_of_memory="CUDA out of memory")
    for name in ("step_ms_p20", "step_ms_p50", "step_ms_p80"):
        del row[name]
    file = ResultsFile(tmp_path, "tiny")
    file.put(row)
    assert file.has(LORA)
    assert run(tmp_path, JENGA) == 0
    speed.main(["--models", "tiny", "--tokens", "512", "--table", "--results", str(tmp_path)])
    assert "| 512 | lora | 1 |  | none | out of memory |" in capsys.readouterr().out


def test_the_page_holds_the_tables_of_all_models(tmp_path: Path) -> None:
    speed.main(["--docs", str(tmp_path / "speed.md"), "--results", str(tmp_path)])
    assert "Nothing has been measured yet." in (tmp_path / "speed.md").read_text()
    run(tmp_path, LORA, plans.row("tiny-opt", 512, "lora"))
    speed.main(["--docs", str(tmp_path / "speed.md"), "--results", str(tmp_path)])
    written = (tmp_path / "speed.md").read_text()
    assert "### tiny\n" in written
    assert "### tiny-opt\n" in written


def test_no_row_starts_that_may_miss_the_deadline(
    tmp_path: Path, turns: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, LORA, seconds=1) == 3
    assert turns.started == []
    assert "2 of 2 rows are left" in capsys.readouterr().out  # the ceilings count


def test_long_rows_are_expected_to_take_long() -> None:
    short = expected_seconds(plans.row("llama-3-8b", 8192, "jenga"), 5)
    dense = expected_seconds(plans.row("llama-3-8b", 65536, "lora+liger+checkpoint"), 5)
    assert speed.STARTUP_SECONDS < short < 60
    assert 90 < dense < 300


@pytest.mark.parametrize("plan", list(plans.PLANS))
def test_plans_name_rows_that_exist_once(plan: str) -> None:
    specs = plans.PLANS[plan]()
    assert len({spec.key for spec in specs}) == len(specs)
    for spec in specs:
        policy = POLICIES[spec.policy]
        assert spec.recompute in (RECOMPUTE if policy.is_ours else policy.recomputes())
        assert policy.is_sparse or spec.keep_fraction == 1


def test_the_grid_has_every_length_keep_fraction_and_recompute() -> None:
    jenga = {spec for spec in plans.grid() if spec.model == "llama-3-8b" and spec.policy == "jenga"}
    longest = {(64, 0.4, "offload"), (128, 0.4, "full"), (128, 0.4, "offload"), (256, 0.4, "offload")}
    assert {(spec.tokens // 1024, spec.keep_fraction, spec.recompute) for spec in jenga} == longest | {
        (thousands, keep, recompute)
        for thousands in (4, 8, 16, 32, 64)
        for keep in (0.2, 0.4, 0.7)
        for recompute in ("none", "mlp", "full")
    }
    assert plans.grid()[: len(plans.bars())] == plans.bars()


def test_the_command_line_takes_some_recomputes_only(tmp_path: Path, turns: Fake) -> None:
    arguments = ["--models", "tiny", "--tokens", "512", "--policies", "lora", "jenga", "--recompute", "full"]
    assert speed.main([*arguments, "--results", str(tmp_path)]) == 0
    kept = [(row["policy"], row["recompute"]) for row in ResultsFile(tmp_path, "tiny").rows]
    assert kept == [("lora", "none"), ("jenga", "full")]

"""The memory benchmark measures a tiny shape here, and its table compares with the estimate of today."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks import memory
from jenga_core.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_there_are_enough_configurations_and_each_is_valid() -> None:
    real = [case for case in memory.CASES if case["model"] != "tiny"]
    assert len(real) >= 20
    assert len({json.dumps(case) for case in memory.CASES}) == len(memory.CASES)
    for case in memory.CASES:
        predicted = memory.predict(case, "cuda")
        assert 0 < predicted["low_bytes"] < predicted["expected_bytes"] < predicted["high_bytes"]
    with pytest.raises(ConfigError):
        memory.config_of({**real[0], "config": {"recompute": "everything"}})


def test_it_measures_a_tiny_shape_once(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks", "memory", "--only", "tiny", "--out", str(out)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads(out.read_text())
    assert len(rows) == sum(case["model"] == "tiny" for case in memory.CASES)
    assert all(row["peak_bytes"] > 0 for row in rows)
    assert f"{len(rows)} measured" in first.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines() == [first.stdout.splitlines()[-1]]
    assert json.loads(out.read_text()) == rows


def test_a_row_outside_of_the_range_is_marked() -> None:
    row = {**memory.CASES[3], "peak_bytes": 10**9}
    assert memory.line(row, "h100").endswith("outside of low..high")
    assert memory.summary([row, {**memory.CASES[4], "out_of_memory": "x"}], "h100") == (
        "1 measured: 0 within 5 % of expected, 0 between low and high"
    )


def test_the_estimate_holds_for_every_peak_that_was_measured() -> None:
    rows = json.loads((memory.RESULTS / "memory-h100.json").read_text())
    assert len(rows) >= 20
    assert memory.summary(rows, "h100") == (
        f"{len(rows)} measured: {len(rows)} within 5 % of expected, {len(rows)} between low and high"
    )
    assert (ROOT / "docs" / "memory.md").read_text() == memory.page([rows]), "write docs/memory.md anew"


def test_cases_run_together_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 1 GiB for the process beside the estimate's high end; one that fits nowhere runs alone."""
    sizes = {"large": 90, "half": 49, "other half": 48, "small": 15}
    monkeypatch.setattr(memory, "predict", lambda case, kind: {"high_bytes": sizes[case["model"]] * memory.GIB})
    running: set[str] = set()
    seen: list[set[str]] = []
    together = threading.Barrier(2, timeout=30)

    def run(_: object, case: memory.Case) -> dict[str, int]:
        running.add(case["model"])
        if "half" in case["model"]:
            together.wait()
        seen.append(set(running))
        running.remove(case["model"])
        return {"peak_bytes": 1}

    monkeypatch.setattr(memory, "measured_apart", run)
    cases = [{"model": name} for name in sizes]
    done = list(memory.measure_all(cases, "cuda", 100 * memory.GIB, time.monotonic() + 60))
    assert {case["model"] for case, _ in done} == set(sizes)
    assert {"large"} in seen
    assert not any("large" in each and len(each) > 1 for each in seen)
    assert not list(memory.measure_all(cases, "cuda", 100 * memory.GIB, time.monotonic() - 1))

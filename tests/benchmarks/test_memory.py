"""The memory benchmark measures a tiny shape here, and its table compares with the estimate of today."""

from __future__ import annotations

import json
import subprocess
import sys
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

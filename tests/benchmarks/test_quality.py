"""What is run, what is not run again, and what the summary says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows
from benchmarks.policies import POLICIES, Setting, config_of
from benchmarks.quality import main, summary

WORKER = """
import json, sys
for line in sys.stdin:
    key = json.loads(line)
    if key["policy"] == "dies":
        sys.exit(3)
    print("chatter")
    print("row " + json.dumps({**key, "perplexity": 20.0}), flush=True)
"""


def run(out: Path, policies: list[str], jobs: int = 2) -> int:
    keys = [{"policy": policy, "seed": 0} for policy in policies]
    worker = [sys.executable, "-c", WORKER]
    return rows.run_missing(keys, out, worker, jobs=jobs, deadline_seconds=60, line_of=lambda row: row["policy"])


def test_rows_are_added_and_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    assert run(out, ["a", "b", "c"]) == 0
    assert sorted(row["policy"] for row in rows.read(out)) == ["a", "b", "c"]
    capsys.readouterr()
    assert run(out, ["a", "b", "c", "d"]) == 0
    assert capsys.readouterr().out.split() == ["0", "s", "d"]
    assert len(rows.read(out)) == 4


def test_workers_spread_over_the_gpus(tmp_path: Path) -> None:
    sees = (
        "import json, os, sys, time\n"
        "for line in sys.stdin:\n"
        "    gpu = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "    print('row ' + json.dumps({**json.loads(line), 'gpu': gpu}), flush=True)\n"
        "    time.sleep(0.5)\n"  # so that no worker takes them all
    )
    rows.run_missing(
        [{"policy": name} for name in "abcdef"],
        tmp_path / "rows.json",
        [sys.executable, "-c", sees],
        jobs=4,
        deadline_seconds=60,
        line_of=str,
        gpus=2,
    )
    found = rows.read(tmp_path / "rows.json")
    assert len(found) == 6
    assert {row["gpu"] for row in found} == {"0", "1"}


def test_a_worker_that_dies_loses_its_row_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    assert run(out, ["a", "dies", "b"], jobs=1) == 1
    assert [row["policy"] for row in rows.read(out)] == ["a", "b"]
    assert 'failed: {"policy": "dies"' in capsys.readouterr().err


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_a_config(policy: str, tmp_path: Path) -> None:
    setting = Setting(tmp_path, 16384, 10, 0.25, 1e-3, tmp_path, {"selection": {"block_tokens": 32}})
    config = config_of(POLICIES[policy], setting, own_context=8192)
    assert config.selection.keep_fraction == 0.25
    assert config.selection.block_tokens == POLICIES[policy].selection.get("block_tokens", 32)
    assert config.rope is not None
    assert config.rope.factor == 2
    assert POLICIES[policy].loss_of is None or POLICIES[policy].loss_of in POLICIES


def row(policy: str, seed: int, perplexity: float, **more: Any) -> rows.Row:
    shared = {"task": "novels", "context": 8192, "keep_fraction": 0.4, "learning_rate": 0.001, "steps": 200}
    return {**shared, "policy": policy, "seed": seed, "perplexity": perplexity, **more}


def test_the_summary_compares_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second seed of `dense` is worse: over the seeds that both have, `jenga` costs 1 % and 2 %."""
    found = [
        row("dense", 0, 20.0),
        row("dense", 1, 30.0),
        row("jenga", 0, 20.2),
        row("jenga", 1, 30.6),
        row("jenga", 0, 25.0, changed={"fused": False}),
        row("dense-same-loss", 0, 20.1),
        row("dense", 0, 10.0, learning_rate=0.002),
        row("jenga", 0, 11.0, learning_rate=0.002),
    ]
    lines = summary(found).splitlines()
    assert lines[0] == "novels, 8192 tokens, 40% kept, rate 0.001"
    assert "jenga | 200 | 2 | 25.400 | +1.50% | +0.50%" in lines
    assert lines.index("novels, 8192 tokens, 40% kept, rate 0.002") < lines.index(
        "jenga | 200 | 1 | 11.000 | +10.00% | "
    )
    assert 'jenga {"fused": false} | 200 | 1 | 25.000 | +25.00% | +24.38%' in lines
    out = tmp_path / "rows.json"
    out.write_text(json.dumps(found))
    assert main(["--out", str(out), "--summary"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_equal_time_needs_a_ratio(tmp_path: Path) -> None:
    files = ["--model", str(tmp_path), "--train", "a", "--eval", "b", "--out", str(tmp_path / "rows.json")]
    with pytest.raises(SystemExit, match="needs --equal-time RATIO"):
        main([*files, "--policies", "equal-time"])

"""The picture of the speed table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import plots

SVG = "{http://www.w3.org/2000/svg}"


def row(policy: str, recompute: str, ms: float | None, gib: float = 10, tokens: int = 8192) -> dict[str, Any]:
    measured = {"out_of_memory": "yes"} if ms is None else {"step_ms_p50": ms, "peak_bytes": gib * 2**30}
    return {
        "model": "llama-3-8b",
        "hardware": "NVIDIA H100 80GB <HBM3>",
        "tokens": tokens,
        "policy": policy,
        "recompute": recompute,
        "keep_fraction": 0.4 if policy == "jenga" else 1.0,
        **measured,
    }


ROWS = [
    row("lora", "none", 800, 76.9),
    row("jenga", "none", 400, 25),
    row("lora", "none", None, tokens=32768),
    row("jenga", "full", 2000, 27, tokens=32768),
    row("jenga-carried", "none", 1),
    {**row("jenga", "none", 1), "keep_fraction": 0.2},
]


def test_bars_are_as_long_as_their_numbers() -> None:
    root = ElementTree.fromstring(plots.picture(ROWS))
    bars = [(bar.get("class"), float(bar.get("width", 0))) for bar in root.iter(f"{SVG}rect")]
    unit = plots.BAR_WIDTH
    assert bars == [
        ("theirs", unit),
        ("theirs memory", pytest.approx(unit * 76.9 / 80, abs=0.1)),
        ("ours", pytest.approx(unit / 2)),
        ("ours memory", pytest.approx(unit * 25 / 80, abs=0.1)),
        ("ours", unit),
        ("ours memory", pytest.approx(unit * 27 / 80, abs=0.1)),
    ]


def test_every_number_and_every_lack_of_room_is_said() -> None:
    root = ElementTree.fromstring(plots.picture(ROWS))
    said = [text.text for text in root.iter(f"{SVG}text")]
    for words in ("800 ms", "76.9 GiB", "400 ms", "2.00 s", "out of memory", "8,192 tokens", "32,768 tokens"):
        assert words in said
    assert "65,536 tokens" not in said
    assert "LoRA no room; Jenga, recompute full 2.00 s, 27.0 GiB" in root.findtext(f"{SVG}desc", "")
    assert "H100 80GB <HBM3>" in (said[-2] or "")
    three_lengths = plots.NAMES_WIDTH + 3 * (plots.BAR_WIDTH + plots.NUMBER_WIDTH)
    assert all(len(line or "") * 7 < three_lengths for line in said[-2:])  # 7 px a letter of the caption, at most


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="measure `speed --plan bars` first"):
        plots.picture([row("lora", "none", None), row("jenga-carried", "none", 1)])


def test_it_is_drawn_from_a_results_file(tmp_path: Path) -> None:
    results = tmp_path / "speed.json"
    results.write_text(json.dumps({"ceilings": None, "rows": ROWS}))
    assert plots.main(["--results", str(results), "--out", str(tmp_path / "speed.svg")]) == 0
    assert (tmp_path / "speed.svg").read_text().startswith("<svg")

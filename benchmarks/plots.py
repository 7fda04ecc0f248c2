"""The README's picture, drawn from the speed table: step time and peak memory of every way to train, by length.

    python -m benchmarks plots --out docs/speed.svg

A row per way, a column per length, two bars in a cell: time above memory, each with its number. An SVG written by
hand, so that drawing needs no library and the picture follows the reader's light or dark colours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.speed import RESULTS

GIB = 2**30
CARD_GIB = 80
KEEP_FRACTION = 0.4
LENGTHS = (8192, 32768, 65536)

WAYS: Mapping[tuple[str, str], str] = {
    ("lora", "none"): "LoRA",
    ("lora+liger", "none"): "LoRA + Liger",
    ("lora+checkpoint", "full"): "LoRA + checkpointing",
    ("lora+liger+checkpoint", "full"): "LoRA + Liger + checkpointing",
    ("jenga", "none"): "Jenga",
    ("jenga", "mlp"): "Jenga, recompute mlp",
    ("jenga", "full"): "Jenga, recompute full",
}
"""Policy and recompute of the rows that are drawn, and what they are called, from top to bottom."""

NAMES_WIDTH, BAR_WIDTH, NUMBER_WIDTH, ROW_HEIGHT, TOP, BOTTOM = 210, 150, 74, 36, 64, 48

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600 } .number { font-size: 11px }
.soft { fill: #57606a; font-size: 12px } .theirs { fill: #8c959f } .ours { fill: #c96f2e } .memory { fill-opacity: .45 }
.line { stroke: #d0d7de }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .soft { fill: #9198a1 } .theirs { fill: #7d8590 } .ours { fill: #e8935a }
.line { stroke: #3d444d } }
"""

Row = Mapping[str, Any]


def picture(rows: Sequence[Row]) -> str:
    """The SVG. Raises ValueError if there is nothing to draw."""
    cells = {
        (tokens, way): found for tokens in LENGTHS for way in WAYS if (found := _find(rows, tokens, way)) is not None
    }
    lengths = [tokens for tokens in LENGTHS if any("step_ms_p50" in cells.get((tokens, way), {}) for way in WAYS)]
    if not lengths:
        raise ValueError("the results hold no row that the picture shows; measure `speed --plan bars` first")
    ways = [way for way in WAYS if any((tokens, way) in cells for tokens in lengths)]
    width = NAMES_WIDTH + len(lengths) * (BAR_WIDTH + NUMBER_WIDTH)
    height = TOP + len(ways) * ROW_HEIGHT + BOTTOM
    about = next(row for row in cells.values() if "step_ms_p50" in row)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t d">',
        f'<title id="t">Step time and peak memory, {escape(about["model"])}</title>',
        f'<desc id="d">{escape(_description(cells, lengths))}</desc>',
        f"<style>{STYLE}</style>",
    ]
    for number, way in enumerate(ways):
        middle = TOP + (number + 0.5) * ROW_HEIGHT
        parts.append(f'<text x="0" y="{middle + 4:g}">{escape(WAYS[way])}</text>')
    for column, tokens in enumerate(lengths):
        left = NAMES_WIDTH + column * (BAR_WIDTH + NUMBER_WIDTH)
        parts.append(f'<text class="title" x="{left}" y="20">{tokens:,} tokens</text>')
        parts.append(f'<text class="soft" x="{left}" y="40">step time, peak memory</text>')
        bottom = TOP + len(ways) * ROW_HEIGHT
        parts.append(f'<line class="line" x1="{left}" x2="{left}" y1="{TOP}" y2="{bottom}"/>')
        longest_ms = max(cells[tokens, way].get("step_ms_p50", 0) for way in ways if (tokens, way) in cells)
        for number, way in enumerate(ways):
            if (tokens, way) in cells:
                parts += _cell(cells[tokens, way], left, TOP + number * ROW_HEIGHT, longest_ms)
    for up, line in zip((26, 8), _caption(about), strict=True):
        parts.append(f'<text class="soft" x="0" y="{height - up}">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _find(rows: Sequence[Row], tokens: int, way: tuple[str, str]) -> Row | None:
    for row in rows:
        is_way = (row["tokens"], row["policy"], row["recompute"]) == (tokens, *way)
        if is_way and row["keep_fraction"] in (1, KEEP_FRACTION) and "unsupported" not in row:
            return row
    return None


def _cell(row: Row, left: float, top: float, longest_ms: float) -> list[str]:
    if "step_ms_p50" not in row:
        return [f'<text class="soft" x="{left + 8}" y="{top + ROW_HEIGHT / 2 + 4:g}">out of memory</text>']
    style = "ours" if row["policy"].startswith("jenga") else "theirs"
    bars = (
        ("", row["step_ms_p50"] / longest_ms, _time(row["step_ms_p50"]), 5),
        (" memory", row["peak_bytes"] / GIB / CARD_GIB, _memory(row), 19),
    )
    parts = []
    for kind, share, number, below in bars:
        length = BAR_WIDTH * share
        parts.append(
            f'<rect class="{style}{kind}" x="{left}" y="{top + below:g}" width="{length:.1f}" height="12" rx="2"/>'
        )
        parts.append(f'<text class="number" x="{left + length + 5:.1f}" y="{top + below + 10:g}">{number}</text>')
    return parts


def _description(cells: Mapping[tuple[int, tuple[str, str]], Row], lengths: Sequence[int]) -> str:
    sentences = []
    for tokens in lengths:
        said = []
        for way, name in WAYS.items():
            row = cells.get((tokens, way))
            if row is not None:
                is_there = "step_ms_p50" in row
                said.append(f"{name} {_time(row['step_ms_p50'])}, {_memory(row)}" if is_there else f"{name} no room")
        sentences.append(f"{tokens:,} tokens: {'; '.join(said)}.")
    return " ".join(sentences)


def _caption(row: Row) -> tuple[str, str]:
    return (
        f"Whole training steps at {row['model']}'s shape, batch 1, LoRA r = 8, one {row['hardware']}.",
        f"Jenga keeps {KEEP_FRACTION:.0%} of the tokens. Shorter is better; an empty cell was not measured.",
    )


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.{2 if ms < 10_000 else 1}f} s"


def _memory(row: Row) -> str:
    return f"{row['peak_bytes'] / GIB:.1f} GiB"


def main(argv: list[str]) -> int:
    """Draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plots", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "speed-llama-3-8b-h100.json", help="a speed file")
    parser.add_argument("--out", type=Path, default=RESULTS.parents[1] / "docs" / "speed.svg")
    arguments = parser.parse_args(argv)
    rows = json.loads(arguments.results.read_text(encoding="utf-8"))["rows"]
    arguments.out.write_text(picture(rows), encoding="utf-8")
    return 0

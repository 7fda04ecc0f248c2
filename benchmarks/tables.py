"""The speed table: columns that follow from others, and how rows are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import published, targets
from benchmarks.ceilings import ceilings_of
from benchmarks.contenders import POLICIES
from benchmarks.roofline import Involved, work
from benchmarks.shapes import SHAPES

GIB = 2**30
_PAGE_HEAD = """# Speed and memory

Written by `python -m benchmarks speed --docs docs/speed.md` from `benchmarks/results/speed-*.json`, whose rows also
hold versions, commits and dates. Whole training steps (forward, backward, AdamW), random weights of the model's shape,
batch 1, LoRA r = 8 on q, k, v, o, bfloat16. Peak is the allocator's over whole steps. The roofline is the work that the
policy needs at the rates of the card ([benchmarks/roofline.py](../benchmarks/roofline.py)).
"""

RECOMPUTE_ORDER = ("none", "mlp", "full", "offload")


def with_derived(rows: Sequence[Mapping[str, Any]], ceilings: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows in the order of the table, each with

    roofline_ms, roofline_share     benchmarks/roofline.py, for the tokens that were involved; share = roofline / p50
    selection_share                 blocks, scores and selection, of the step
    time_of_lora, peak_of_lora      this row's step time and peak over plain LoRA's at the same length
    saved_of_lora                   1 - peak_of_lora

    None where a row has no measurement, or LoRA none to compare with.
    """
    lora = {(row["model"], row["tokens"]): row for row in rows if row["policy"] == "lora" and "step_ms_p50" in row}
    found = []
    for row in sorted(rows, key=_order):
        derived = dict.fromkeys(
            ("roofline_ms", "roofline_share", "selection_share", "time_of_lora", "peak_of_lora", "saved_of_lora")
        )
        if "step_ms_p50" in row:
            derived["roofline_ms"] = 1000 * _roofline_seconds(row, ceilings)
            derived["roofline_share"] = derived["roofline_ms"] / row["step_ms_p50"]
            if "selection_ms" in row:
                # Of the step that it was measured in: one that is replayed from a graph has no marks inside.
                of = row.get("selection_of_ms") or row.get("second_step_ms", row["step_ms_p50"])
                derived["selection_share"] = row["selection_ms"] / of
            dense = lora.get((row["model"], row["tokens"]))
            if dense is not None and dense["hardware"] == row["hardware"]:
                derived["time_of_lora"] = row["step_ms_p50"] / dense["step_ms_p50"]
                derived["peak_of_lora"] = row["peak_bytes"] / dense["peak_bytes"] if dense["peak_bytes"] else None
                derived["saved_of_lora"] = None if derived["peak_of_lora"] is None else 1 - derived["peak_of_lora"]
        found.append({**row, **derived})
    return found


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    recompute = RECOMPUTE_ORDER.index(row["recompute"])
    return (row["model"], row["tokens"], list(POLICIES).index(row["policy"]), -row["keep_fraction"], recompute)


def _roofline_seconds(row: Mapping[str, Any], ceilings: Mapping[str, Any] | None) -> float:
    involved = Involved.evenly(row["tokens"], row["keep_fraction"])
    if "involved" in row and row["policy"] != "jenga-per-layer":  # there it is only the last layer's set
        involved = Involved(**row["involved"])
    needed = work(
        SHAPES[row["model"]],
        row["policy"],
        row["tokens"],
        recompute=row["recompute"],
        involved=involved,
        entry_layer=row.get("entry_layer"),
    )
    return needed.seconds(ceilings_of(dict(ceilings) if ceilings else None))


def line(row: Mapping[str, Any]) -> str:
    """A row while it runs."""
    name = f"{row['model']} {row['tokens']:>6} {row['policy']:>21} keep {row['keep_fraction']:<4} {row['recompute']:>4}"
    if "step_ms_p50" not in row:
        return f"{name}: {_why_not(row)} [{row['hardware']}]"
    backends = ", ".join(f"{backend} x{count}" for backend, count in row["attention_backends"].items()) or "own kernels"
    share = f"{row['roofline_share']:.0%} of roofline" if row["roofline_share"] is not None else ""
    selection = f", selection {row['selection_share']:.2%}" if row.get("selection_share") is not None else ""
    return (
        f"{name}: {row['step_ms_p50']:.1f} ms ({row['step_ms_p20']:.1f}-{row['step_ms_p80']:.1f}), "
        f"peak {row['peak_bytes'] / GIB:.2f} GiB (reserved {row['reserved_bytes'] / GIB:.1f}, {row['allocator']}), "
        f"{share}{selection}, attention: {backends}, loss {row['loss']:.3f} [{row['hardware']}]"
    )


def ceilings_line(measured: Mapping[str, Any]) -> str:
    """What the card reached."""
    gemm = ", ".join(f"{value:.0f} at {rows} rows" for rows, value in measured["gemm_tflops"].items())
    attention = ", ".join(
        f"{tokens}: {forward:.0f}/{backward:.0f}" for tokens, forward, backward in measured["attention_tflops"]
    )
    return (
        f"ceilings [{measured['hardware']}]: GEMM {gemm} TFLOP/s; copy {measured['copy_gb_per_second']:.0f} GB/s; "
        f"attention forward/backward TFLOP/s {attention}"
    )


def markdown(model: str, rows: Sequence[Mapping[str, Any]], ceilings: Mapping[str, Any] | None) -> str:
    """The table of one model, its targets, and what others published."""
    lines = [f"### {model}", ""]
    if ceilings:
        lines += [ceilings_line(ceilings), ""]
    lines += [
        "| tokens | policy | keep | chosen at | recompute | step, ms (p20-p80) | peak GiB | time / LoRA "
        "| saved of LoRA's peak | roofline ms | share of it | selection |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        entry = "" if row.get("entry_layer") is None else f"layer {row['entry_layer']}"
        head = f"| {row['tokens']:,} | {row['policy']} | {row['keep_fraction']:g} | {entry} | {row['recompute']} "
        if "step_ms_p50" not in row:
            lines.append(f"{head}| {_why_not(row)} | | | | | | |")
            continue
        lines.append(
            f"{head}| {row['step_ms_p50']:.0f} ({row['step_ms_p20']:.0f}-{row['step_ms_p80']:.0f}) "
            f"| {row['peak_bytes'] / GIB:.1f} | {_number(row['time_of_lora'])} | {_percent(row['saved_of_lora'])} "
            f"| {row['roofline_ms']:.0f} | {_percent(row['roofline_share'])} | {_percent(row['selection_share'], 2)} |"
        )
    lines += ["", *targets.markdown(model, rows), "", *published.markdown(model)]
    return "\n".join(lines)


def page(folder: Path) -> str:
    """All tables of a folder, as docs/speed.md."""
    parts = [_PAGE_HEAD]
    for path in sorted(folder.glob("speed-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = with_derived(content["rows"], content["ceilings"])
        parts.append(markdown(path.stem.removeprefix("speed-").rpartition("-")[0], rows, content["ceilings"]))
    if len(parts) == 1:
        parts.append("Nothing has been measured yet.")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _why_not(row: Mapping[str, Any]) -> str:
    if "out_of_memory" in row:
        return "out of memory"
    return str(row["unsupported"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}%}"

"""What the default preset has to reach on one H100 80GB, for Llama-3-8B's shape, and whether a table's rows do.

A target compares a row with another row of the same table, so that both were measured alike; where one of the two is
not there, or ran out of memory, there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODEL = "llama-3-8b"
ARTIFACT_8K_GIB = 41.1
GIB = 2**30
K = 1024

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One comparison."""

    what: str
    reached: float
    wanted: float
    is_ceiling: bool = True
    """`reached` must not be above `wanted`; else not below it."""

    @property
    def is_met(self) -> bool:
        """Whether it is."""
        return self.reached <= self.wanted if self.is_ceiling else self.reached >= self.wanted


def targets(rows: Sequence[Row], keep_fraction: float = 0.4) -> Iterator[Target]:
    """Those whose rows are all there, at this keep fraction."""

    def find(tokens: int, policy: str, recompute: str | None = None) -> list[Row]:
        return [
            row
            for row in rows
            if row["tokens"] == tokens
            and row["policy"] == policy
            and row["keep_fraction"] in (1, keep_fraction)
            and recompute in (None, row["recompute"])
            and "step_ms_p50" in row
        ]

    for tokens, recompute, other, (column, label), share in _COMPARISONS:
        for ours in find(tokens, "jenga", recompute):
            for theirs in find(tokens, other):
                reached = ours[column] / theirs[column]
                yield Target(f"{tokens // K}K, recompute {recompute}: {label} over {other}'s", reached, share)
    for ours in find(8 * K, "jenga", "none"):
        if ours["model"] != MODEL:
            continue
        peak = ours["peak_bytes"] / GIB
        yield Target("8K, recompute none: peak over the artifact's 41.1 GiB", peak / ARTIFACT_8K_GIB, 0.62)
    for dense in find(8 * K, "jenga-lora", "none"):
        for liger in find(8 * K, "lora+liger"):
            yield Target("8K, dense: step over lora+liger's", dense["step_ms_p50"] / liger["step_ms_p50"], 1)
            yield Target("8K, dense: peak over lora+liger's", dense["peak_bytes"] / liger["peak_bytes"], 1)
    for row in rows:
        if row["policy"] not in _OURS or row["tokens"] < 8 * K or "step_ms_p50" not in row:
            continue
        name = f"{row['tokens'] // K}K {row['policy']} keep {row['keep_fraction']:g} recompute {row['recompute']}"
        yield Target(f"{name}: share of its roofline", row["roofline_share"], 0.75, is_ceiling=False)
        if row.get("selection_share") is not None:
            yield Target(f"{name}: selection's share of the step", row["selection_share"], 0.02)


_OURS = ("jenga", "jenga-predicted", "jenga-lora")
_STEP, _PEAK = ("step_ms_p50", "step"), ("peak_bytes", "peak")

_COMPARISONS = (
    (8 * K, "none", "lora", _PEAK, 0.33),
    (8 * K, "none", "lora", _STEP, 0.50),
    (8 * K, "none", "lora+liger", _STEP, 0.62),
    *(
        (tokens, recompute, "lora+liger+checkpoint", column, share)
        for recompute in ("mlp", "full")
        for tokens, step_share in ((8 * K, 0.60), (32 * K, 0.50), (64 * K, 1 / 2.3))
        for column, share in ((_PEAK, 1.0), (_STEP, step_share))
    ),
)
"""Tokens, recompute of `jenga`, whom it is compared with, in what, and at most which share of theirs."""


def markdown(model: str, rows: Sequence[Row]) -> list[str]:
    """A line per target; of other models than the one that they were set for, those that are not met."""
    found = list(targets(rows))
    met = sum(target.is_met for target in found)
    if model == MODEL:
        lines = [f"Targets: {met} of {len(found)} met.", ""]
    else:
        lines = [f"The targets of {MODEL}: {met} of {len(found)} met{'.' if met == len(found) else '; not met:'}", ""]
        found = [target for target in found if not target.is_met]
    if found:
        lines += ["| target | reached | wanted | met |", "|---|---|---|---|"]
    for target in found:
        sign = "<=" if target.is_ceiling else ">="
        lines.append(
            f"| {target.what} | {target.reached:.3f} | {sign} {target.wanted:.3f} "
            f"| {'yes' if target.is_met else 'no'} |"
        )
    return lines

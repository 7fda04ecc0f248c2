"""Profiles as text: what `python -m benchmarks profile` prints, and docs/profile.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.trace import PHASES

GIB = 2**30

_HEAD = """# Where a step's time and memory go

Written by `python -m benchmarks profile --docs docs/profile.md` from `benchmarks/results/profile-*.json`; measure with
`python -m benchmarks profile`, on a GPU. Random weights at the model's shape, batch 1, LoRA r = 8 on q, k, v, o,
bfloat16.

*Time* is that of kernels, copies and fills in one step under PyTorch's profiler, by the phase in which they were
launched. What is launched while blocks are scored and chosen counts as selection, while the loss is computed as loss
(with the head's products), in the optimizer as optimizer; the rest goes by the kernels' names, changes of dtype under
movement. *Idle* is what the GPU waited between the first and the last of them: a profiled step is launched from Python,
slowly, while training replays steps of full windows from a graph
([decision 0009](decisions/0009-a-step-is-captured-once.md)) and hardly waits.

*Memory* is the allocator's, at the borders of another step's phases. *Kept* are the storages that autograd holds when
backward begins, counted once each; the frozen weights are not among them.
"""


def markdown(profiles: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    if not profiles:
        return _HEAD + "\nNo profile has been measured yet.\n"
    ordered = sorted(profiles, key=lambda found: (found["model"], found["tokens"], found["policy"], found["recompute"]))
    return "\n".join([_HEAD, *(section(found) for found in ordered)])


def section(found: Mapping[str, Any]) -> str:
    """One profile."""
    keep = "" if found["keep_fraction"] == 1 else f", {found['keep_fraction']:.0%} kept"
    lines = [
        f"## {found['model']}, {found['tokens']:,} tokens: {found['policy']}{keep}, recompute {found['recompute']}",
        "",
        f"{found['hardware']}, driver {found['driver']}, torch {found['torch']}, triton {found['triton']}, "
        f"transformers {found['transformers']}, commit {found['commit']}, {found['date']}.",
        "",
    ]
    if "time" in found:
        lines += [*_times(found["time"]), ""]
    return "\n".join([*lines, *_memory(found["memory"]), ""])


def _times(time: Mapping[str, Any]) -> list[str]:
    span = time["span_ms"]
    lines = [f"| ms | {' | '.join(PHASES)} | step | share |", "|---" * (len(PHASES) + 3) + "|"]
    for kind, phases in time["ms_by_kind"].items():
        total = sum(phases.values())
        cells = " | ".join(f"{phases[phase]:.1f}" if phase in phases else "" for phase in PHASES)
        lines.append(f"| {kind} | {cells} | {total:.1f} | {total / span:.1%} |")
    empty = " | ".join("" for _ in PHASES)
    lines.append(f"| idle | {empty} | {time['idle_ms']:.1f} | {time['idle_ms'] / span:.1%} |")
    lines.append(f"| from first to last | {empty} | {span:.1f} | |")
    lines += ["", "| longest kernels | kind | calls | ms |", "|---|---|---|---|"]
    for kernel in time["kernels"][:12]:
        name = kernel["name"].replace("|", "/")
        name = name if len(name) <= 70 else name[:67] + "..."
        lines.append(f"| `{name}` | {kernel['kind']} | {kernel['calls']} | {kernel['ms']:.1f} |")
    return lines


def _memory(memory: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Frozen weights {memory['frozen_weights_bytes'] / GIB:.2f} GiB, adapter and optimizer "
        f"{memory['adapter_bytes'] / GIB:.2f} GiB, kept for backward {memory['kept_bytes'] / GIB:.2f} GiB.",
        "",
        "| GiB allocated | before | at most | after |",
        "|---|---|---|---|",
    ]
    for phase, weighed in memory["phases"].items():
        cells = " | ".join(f"{weighed[name] / GIB:.2f}" for name in ("before", "peak", "after"))
        lines.append(f"| {phase} | {cells} |")
    lines += ["", "| kept for backward | storages | GiB |", "|---|---|---|"]
    for kept in memory["kept"][:10]:
        lines.append(f"| {kept['shape']} | {kept['count']} | {kept['bytes'] / GIB:.3f} |")
    return lines

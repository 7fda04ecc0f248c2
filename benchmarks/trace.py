"""A profiler's trace of one step, added up: which kind of work the GPU's time went to, and in which phase.

Every kernel, copy and fill counts once, under the phase in which the CPU launched it and under one kind:

    selection, loss, optimizer      whatever was launched inside of a range of that name
    the others                      by the kernel's name, first match in `KINDS`

so the head's products count as loss where the loss is computed in one go with its gradient, and as GEMM where plain
autograd comes back to them. `idle` is the time between the first and the last kernel in which nothing ran.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS: Sequence[tuple[str, str]] = (
    ("selection", r"block_scores|topk|sort|radix"),
    ("attention", r"sdpa|flash|fmha|attention|flex"),
    ("GEMM", r"gemm|nvjet|cutlass|cublas|splitk|gemv"),
    ("loss", r"cross_entropy|log_?softmax|nll_loss|element_mul"),
    ("norm", r"norm"),
    ("rotary", r"rope|rotary|rotat"),
    ("activation", r"silu|swiglu|gated|gelu|relu"),
    ("optimizer", r"adam|multi_tensor"),
    ("movement", r"index|gather|scatter|rows|memcpy|memset|copy|catarray|fill"),
)
"""Regular expressions over kernel names, case ignored. Triton's are MODULE.FUNCTION, see `TRITON`."""

RANGES = ("selection", "loss", "optimizer")
"""Ranges that decide the kind of what is launched inside."""

PHASES = ("forward", "loss", "backward", "optimizer")
"""Ranges that follow each other and make up a step. Forward is the decoder's."""

PREFIX = "step:"
"""Of the names of our ranges in the trace."""

TRITON = "triton:"
"""After the prefix, of a range around the launch of a Triton kernel; its module and name follow. The GPU knows only the
function's name, and `_forward` says nothing."""

_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class Ran:
    """One thing the GPU did; microseconds."""

    name: str
    kind: str
    phase: str
    start: float
    duration: float


def ran(events: Iterable[Mapping[str, Any]]) -> list[Ran]:
    """What ran, from the `traceEvents` of a Chrome trace."""
    launched: dict[int, float] = {}
    ranges: dict[str, list[tuple[float, float]]] = defaultdict(list)
    triton: list[tuple[float, float, str]] = []
    on_gpu = []
    for event in events:
        category = event.get("cat")
        if category in _LAUNCHES and "correlation" in event.get("args", {}):
            launched[event["args"]["correlation"]] = event["ts"]
        elif category == "user_annotation" and event["name"].startswith(PREFIX + TRITON):
            name = event["name"].removeprefix(PREFIX + TRITON)
            triton.append((event["ts"], event["ts"] + event["dur"], name))
        elif category == "user_annotation" and event["name"].startswith(PREFIX):
            ranges[event["name"].removeprefix(PREFIX)].append((event["ts"], event["ts"] + event["dur"]))
        elif category in _ON_GPU:
            on_gpu.append(event)
    for spans in (*ranges.values(), triton):
        spans.sort()  # type: ignore[attr-defined]
    found = []
    for event in on_gpu:
        at = launched.get(event["args"].get("correlation", -1), event["ts"])
        launch = _covering(triton, at)
        name = event["name"] if launch is None else str(launch[2])
        kind = next((name for name in RANGES if _covering(ranges[name], at)), None) or kind_of(name)
        phase = next((name for name in PHASES if _covering(ranges[name], at)), "outside")
        found.append(Ran(name, kind, phase, event["ts"], event["dur"]))
    return found


def kind_of(kernel: str) -> str:
    """By its name alone; `elementwise` for PyTorch's pointwise kernels, `other` for the rest."""
    for kind, pattern in KINDS:
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "elementwise" if re.search(r"elementwise|reduce", kernel, re.IGNORECASE) else "other"


def _covering(spans: Sequence[tuple[Any, ...]], at: float) -> tuple[Any, ...] | None:
    """The span that `at` lies in, of spans that do not overlap."""
    place = bisect_right(spans, at, key=lambda span: span[0]) - 1
    return spans[place] if place >= 0 and at <= spans[place][1] else None


def busy_ms(work: Sequence[Ran]) -> float:
    """Time in which at least one of them ran."""
    total, end = 0.0, float("-inf")
    for item in sorted(work, key=lambda item: item.start):
        finish = item.start + item.duration
        total += max(finish - max(item.start, end), 0)
        end = max(end, finish)
    return total / 1000


def summary(work: Sequence[Ran]) -> dict[str, Any]:
    """Milliseconds by kind and phase, the longest kernels, and what the GPU idled."""
    if not work:
        raise ValueError("the trace holds no kernel; profiling needs a CUDA device")
    by_kind: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    by_kernel: dict[tuple[str, str], float] = defaultdict(float)
    calls: Counter[tuple[str, str]] = Counter()
    for item in work:
        by_kind[item.kind][item.phase] += item.duration / 1000
        by_kernel[item.kind, item.name] += item.duration / 1000
        calls[item.kind, item.name] += 1
    span_ms = (max(item.start + item.duration for item in work) - min(item.start for item in work)) / 1000
    kinds = {kind: dict(phases) for kind, phases in sorted(by_kind.items(), key=lambda pair: -sum(pair[1].values()))}
    return {
        "span_ms": span_ms,
        "idle_ms": span_ms - busy_ms(work),
        "ms_by_kind": kinds,
        "kernels": [
            {"kind": kind, "name": name[:160], "calls": calls[kind, name], "ms": ms}
            for (kind, name), ms in sorted(by_kernel.items(), key=lambda pair: -pair[1])[:25]
        ],
    }

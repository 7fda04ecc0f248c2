"""How fast are the kernels, against the measured ceilings of the same card?

    python -m benchmarks kernels [--only scores attention loss bandwidth] [--out results.json]

Each row: p20, p50, p80 of the time, and what it means. In `scores`, FLOPs are counted causally, as the work that is
needed: H x D x T^2 for one product of queries and keys; `sdpa` is PyTorch's attention forward (two such products) in
the backend that it picks itself, measured in the same run. The other groups are described in their modules.

Rows of other groups stay in the file, and groups that are complete, of the same commit and versions, are not measured
again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from jenga_kernels.block_scores import block_scores

from benchmarks import attention, bandwidth, environment, loss

SHAPES = {
    "llama-3-8b": (32, 8, 128),
    "llama-2-7b": (32, 32, 128),
    "smollm2-135m": (9, 3, 64),
}
"""Query heads, key heads, head size."""

LENGTHS = (8192, 32768, 65536)


def scores() -> Iterator[dict[str, Any]]:
    """Block scores on every shape and length, and attention beside them."""
    for name, (H, K, D) in SHAPES.items():
        for T in LENGTHS:
            q = torch.randn(1, H, T, D, device="cuda", dtype=torch.bfloat16)
            k = torch.randn(1, K, T, D, device="cuda", dtype=torch.bfloat16)
            length = torch.tensor([T], device="cuda")
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            block_scores(q, k, length, block_tokens=64, scale=D**-0.5)
            extra = torch.cuda.max_memory_allocated() - before
            kernel = partial(block_scores, q, k, length, block_tokens=64, scale=D**-0.5)
            about = {"model": name, "tokens": T}
            yield {"kernel": "block_scores", **about, "extra_bytes": extra, **_timed(kernel, H * D * T**2)}
            yield {"kernel": "sdpa", **about, **_timed(_attention(q, k), 2 * H * D * T**2)}


def _attention(q: torch.Tensor, k: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)


def _timed(function: Callable[[], Any], flops: float) -> dict[str, float]:
    p20, p50, p80 = triton.testing.do_bench(function, warmup=50, rep=300, quantiles=[0.2, 0.5, 0.8])
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "tflops": flops / p50 / 1e9}


GROUPS: Mapping[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "scores": scores,
    "attention": attention.rows,
    "loss": loss.rows,
    "bandwidth": bandwidth.rows,
}
"""By the name that --only takes."""


def main(argv: list[str]) -> int:
    """Measure, print a line per row, and keep each as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    parser.add_argument("--out", type=Path, help="results file (JSON list); benchmarks/results/kernels-GPU.json")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of kernels (all)")
    parser.add_argument("--again", action="store_true", help="measure complete groups, too")
    arguments = parser.parse_args(argv)
    out = arguments.out or Path(__file__).parent / "results" / f"kernels-{environment.hardware_slug()}.json"
    kept = json.loads(out.read_text()) if out.exists() else []
    for group in arguments.only:
        if is_complete(group, kept) and not arguments.again:
            print(f"{group}: measured already")
            continue
        others = [row for row in kept if row.get("group", group) != group]
        found: list[dict[str, Any]] = []
        for row in GROUPS[group]():
            print(line(row), flush=True)
            found.append({"group": group, "is_complete": False, **row, **environment.describe()})
            out.write_text(json.dumps([*others, *found], indent=1) + "\n")
        kept = [*others, *({**row, "is_complete": True} for row in found)]
        out.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


def is_complete(group: str, rows: list[dict[str, Any]]) -> bool:
    """Whether all rows of a group are there, measured with what is installed now."""
    wanted = {**environment.versions(), "commit": environment.commit(), "is_complete": True}
    found = [row for row in rows if row.get("group") == group]
    return bool(found) and all(row.get(name) == value for row in found for name, value in wanted.items())


def line(row: Mapping[str, Any]) -> str:
    """A row as it is printed."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" if name != "kernel" else str(value)
        for name, value in row.items()
    )

"""How fast are the kernels, against the measured ceilings of the same card?

    python -m benchmarks kernels --out results.json

Each row: p20, p50, p80 of the time, and the rate it means. FLOPs are counted causally, as the work that is needed:
H x D x T^2 for one product of queries and keys. `sdpa` is PyTorch's attention forward (two such products) in the
backend that it picks itself, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from jenga_kernels.block_scores import block_scores

from benchmarks import environment

SHAPES = {
    "llama-3-8b": (32, 8, 128),
    "llama-2-7b": (32, 32, 128),
    "smollm2-135m": (9, 3, 64),
}
"""Query heads, key heads, head size."""

LENGTHS = (8192, 32768, 65536)


def rows() -> Iterator[dict[str, Any]]:
    """Every kernel on every shape and length."""
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
            scores = partial(block_scores, q, k, length, block_tokens=64, scale=D**-0.5)
            about = {"model": name, "tokens": T}
            yield {"kernel": "block_scores", **about, "extra_bytes": extra, **_timed(scores, H * D * T**2)}
            yield {"kernel": "sdpa", **about, **_timed(_attention(q, k), 2 * H * D * T**2)}


def _attention(q: torch.Tensor, k: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)


def _timed(function: Callable[[], Any], flops: float) -> dict[str, float]:
    p20, p50, p80 = triton.testing.do_bench(function, warmup=50, rep=300, quantiles=[0.2, 0.5, 0.8])
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "tflops": flops / p50 / 1e9}


def main(argv: list[str]) -> int:
    """Measure, print a line per row, and write them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON list)")
    arguments = parser.parse_args(argv)
    measured = []
    for row in rows():
        name = f"{row['kernel']:>14} {row['model']:>14} {row['tokens']:>6}"
        print(f"{name}: {row['p50_ms']:.3f} ms, {row['tflops']:.0f} TFLOP/s")
        measured.append({**row, **environment.describe()})
    arguments.out.write_text(json.dumps(measured, indent=1) + "\n")
    return 0

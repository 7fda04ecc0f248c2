"""What this card reaches: matrix products, causal attention and copies, measured in the run they are compared with.

Random operands (zeros run faster), CUDA events, medians. FLOPs of attention are counted causally: two products over
T^2 / 2 pairs forward, five backward.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from benchmarks import environment
from benchmarks.roofline import ATTENTION_TERAFLOPS, GEMM_FLOPS_PER_SECOND, Ceilings
from benchmarks.shapes import Shape
from benchmarks.step import FASTEST_FIRST, Clock

SUSTAINED_MS = 400.0

LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536)


def measure(shape: Shape, device: torch.device) -> dict[str, Any]:
    """TFLOP/s of GEMMs by rows, of attention by length, and GB/s of a copy (bytes read plus bytes written)."""
    lengths = LENGTHS if device.type == "cuda" else (64, 128)
    clock = Clock(device)
    found: dict[str, Any] = {**environment.describe(), "gemm_tflops": {}, "attention_tflops": []}
    E, F, dtype = shape.hidden, shape.intermediate, torch.bfloat16
    weight_FE = torch.randn(F, E, device=device, dtype=dtype)
    for rows in (lengths[0], lengths[len(lengths) // 2]):
        x_TE = torch.randn(rows, E, device=device, dtype=dtype)
        ms = median_ms(clock, partial(torch.nn.functional.linear, x_TE, weight_FE))
        found["gemm_tflops"][str(rows)] = 2 * rows * E * F / ms / 1e9
    source = torch.randn(lengths[-1] * E, device=device, dtype=dtype)
    target = torch.empty_like(source)
    found["copy_gb_per_second"] = 2 * source.nbytes / median_ms(clock, lambda: target.copy_(source)) / 1e6
    with sdpa_kernel(FASTEST_FIRST, set_priority=True):
        for tokens in lengths:
            found["attention_tflops"].append(_attention(shape, tokens, device, clock))
    return found


def _attention(shape: Shape, tokens: int, device: torch.device, clock: Clock) -> tuple[int, float, float]:
    H, K, D = shape.heads, shape.key_heads, shape.head_size

    def random(heads: int) -> Tensor:
        return torch.randn(1, heads, tokens, D, device=device, dtype=torch.bfloat16, requires_grad=True)

    q_BHTD, k_BKTD, v_BKTD = random(H), random(K), random(K)

    def forward() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            q_BHTD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=H != K
        )

    product = H * D * tokens**2  # FLOPs over T^2 / 2 pairs
    forward_ms = median_ms(clock, forward)
    out_BHTD = forward()
    gradient = torch.randn_like(out_BHTD)
    leaves = (q_BHTD, k_BKTD, v_BKTD)
    backward_ms = median_ms(clock, lambda: torch.autograd.grad(out_BHTD, leaves, gradient, retain_graph=True))
    return tokens, 2 * product / forward_ms / 1e9, 5 * product / backward_ms / 1e9


def median_ms(clock: Clock, function: Callable[[], Any]) -> float:
    """Median milliseconds of calls that follow each other for a while, after as long a warm-up: a card that has only
    just begun to work runs faster than its power limit lets it for long."""
    busy_ms = SUSTAINED_MS if clock.device.type == "cuda" else 1.0
    function()
    one_ms = clock.milliseconds(clock.between(function, 1))[0]
    calls = min(max(math.ceil(busy_ms / max(one_ms, 1e-3)), 5), 2000)
    clock.between(function, calls)
    return statistics.median(clock.milliseconds(clock.between(function, calls)))


def ceilings_of(measured: dict[str, Any] | None) -> Ceilings:
    """For rooflines: GEMMs at the rate all tables use, attention at the rate this run measured, if it did."""
    table = (measured or {}).get("attention_tflops") or ATTENTION_TERAFLOPS
    return Ceilings(GEMM_FLOPS_PER_SECOND, tuple((int(t), float(f), float(b)) for t, f, b in table))

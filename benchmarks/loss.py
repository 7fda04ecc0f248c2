"""How fast is the loss with a frozen head, and how much memory does it take beside its input and its gradient?

Forward and backward of `segmented_cross_entropy`, beside the floor of the same run (its two products of matrices alone,
at the rate that one large product reaches), plain PyTorch, and Liger's fused linear cross entropy where liger_kernel is
installed. `label_fraction` is the share of tokens that carry loss; the others' labels are -100.

Shapes   T tokens, E hidden size, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import triton
from torch import Tensor

from jenga_core.config import LossConfig
from jenga_core.loss.segmented_cross_entropy import IGNORE, segmented_cross_entropy

E, V = 4096, 128256
"""Of Llama-3-8B."""

LENGTHS = (8192, 65536)
SEGMENTS = (512, 1024, 2048, 4096)
LARGEST_PLAIN_TOKENS = 8192
"""Longer ones do not fit the card when logits exist in full."""


def rows() -> Iterator[dict[str, Any]]:
    """Every way of computing the loss, at every length, with all labels and with two fifths of them."""
    weight_VE = torch.randn(V, E, device="cuda", dtype=torch.bfloat16) / E**0.5
    tflops = _matmul_tflops(weight_VE)
    for T in LENGTHS:
        for label_fraction in (1.0, 0.4):
            hidden_TE = torch.randn(T, E, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            target_T = torch.randint(0, V, (T,), device="cuda")
            target_T[torch.rand(T, device="cuda") >= label_fraction] = IGNORE
            labels = int((target_T != IGNORE).sum())
            floor = {"floor_ms": 4 * labels * E * V / tflops / 1e9, "labels": labels}
            about = {"model": "llama-3-8b", "tokens": T, "label_fraction": label_fraction, **floor}
            for name, loss in _ways(hidden_TE, weight_VE, target_T):
                yield {"kernel": name, **about, **_measured(loss, hidden_TE)}


def _ways(hidden_TE: Tensor, weight_VE: Tensor, target_T: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    default = LossConfig().segment_tokens
    for segment_tokens in SEGMENTS:
        name = "cross_entropy" if segment_tokens == default else f"cross_entropy, segments of {segment_tokens}"
        yield (
            name,
            lambda s=segment_tokens: segmented_cross_entropy(hidden_TE, weight_VE, target_T, segment_tokens=s),  # type: ignore[misc]
        )
    if hidden_TE.shape[0] <= LARGEST_PLAIN_TOKENS:
        yield "plain torch", lambda: torch.nn.functional.cross_entropy(hidden_TE @ weight_VE.T, target_T)
    if find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        def liger() -> Tensor:
            loss: Tensor = Liger.apply(hidden_TE, weight_VE, target_T)[0]
            return loss

        yield "liger", liger


def _measured(loss: Callable[[], Tensor], hidden_TE: Tensor) -> dict[str, float]:
    def step() -> None:
        hidden_TE.grad = None
        loss().backward()

    step()
    hidden_TE.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    gradient_bytes = hidden_TE.numel() * hidden_TE.element_size()
    extra = torch.cuda.max_memory_allocated() - before - gradient_bytes
    p20, p50, p80 = triton.testing.do_bench(step, warmup=100, rep=1000, quantiles=[0.2, 0.5, 0.8])
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "extra_bytes": extra}


def _matmul_tflops(weight_VE: Tensor) -> float:
    """What one large product of these shapes reaches on this card."""
    x = torch.randn(8192, E, device="cuda", dtype=torch.bfloat16)
    milliseconds: float = triton.testing.do_bench(lambda: x @ weight_VE.T, warmup=100, rep=500, return_mode="median")
    return 2 * x.shape[0] * E * V / milliseconds / 1e9

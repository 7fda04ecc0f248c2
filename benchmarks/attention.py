"""How fast is attention for the involved queries alone, over the keys of all?

`involved_attention` beside two ways to have the same rule from PyTorch, and dense causal attention of all tokens:

    flex        compiled FlexAttention with a block mask of "key at or before the query's position"
    sdpa mask   scaled_dot_product_attention with that mask in full, keys and values repeated per query head
    sdpa dense  all tokens, in the backend that PyTorch picks itself (cuDNN on an H100)

FLOPs are those that the rule needs, whoever computes it: two products over the pairs of an involved query and a key at
or before it forward, three backward, and two more over the pairs within the involved, whose keys alone have a gradient.
flex and sdpa give the gradient of every key, which is more than is asked of them: time is what compares.

The first block and a random choice of the others are involved, 64 tokens each, as in the method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.shapes import SHAPES, Shape

CASES = (
    *(("llama-3-8b", tokens, keep) for tokens in (8192, 32768, 65536) for keep in (0.4, 0.2)),
    ("llama-2-7b", 8192, 0.4),
    ("smollm2-135m", 8192, 0.4),
)
"""Model, tokens, keep fraction."""

BLOCK_TOKENS = 64
LARGEST_MASK_TOKENS = 32768
"""A mask in full, and what its backend makes of it, do not fit a card beyond."""


@dataclass(frozen=True)
class Case:
    """Random queries of the involved tokens, keys and values of all; batch 1."""

    q_BHGD: Tensor
    k_BKTD: Tensor
    v_BKTD: Tensor
    position_G: Tensor
    """Of the involved tokens, ascending."""

    @staticmethod
    def random(shape: Shape, tokens: int, keep_fraction: float, device: torch.device, dtype: torch.dtype) -> Case:
        """See the module."""
        blocks = tokens // BLOCK_TOKENS
        kept = max(round(blocks * keep_fraction), 2)
        chosen = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(blocks - 1)[: kept - 1] + 1]).sort()[0]
        position_G = (chosen[:, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten().to(device)

        def heads(count: int, rows: int) -> Tensor:
            x_BHTD = torch.randn(1, count, rows, shape.head_size, device=device, dtype=dtype)
            return x_BHTD.requires_grad_()

        return Case(
            heads(shape.heads, position_G.shape[0]), heads(shape.key_heads, tokens), heads(shape.key_heads, tokens),
            position_G,
        )  # fmt: skip

    @property
    def scale(self) -> float:
        """Of q . k."""
        return float(self.q_BHGD.shape[-1] ** -0.5)

    @property
    def first_BG(self) -> Tensor:
        """First key that each row sees."""
        return torch.zeros_like(self.position_G)[None]

    @property
    def last_BG(self) -> Tensor:
        """Last key that each row sees: its own."""
        return self.position_G[None]

    @property
    def forward_flops(self) -> float:
        """Two products over the pairs that are seen."""
        return 2 * self._product_flops * float((self.position_G + 1).sum())

    @property
    def backward_flops(self) -> float:
        """Three over these, and two over the pairs within the involved."""
        rows = self.position_G.shape[0]
        return self._product_flops * (3 * float((self.position_G + 1).sum()) + 2 * rows * (rows + 1) / 2)

    @property
    def _product_flops(self) -> int:
        _, H, _, D = self.q_BHGD.shape
        return 2 * H * D


def flex(case: Case, attention: Callable[..., Any] = flex_attention) -> Callable[[], Tensor]:
    """FlexAttention; give `attention` compiled to be fast."""
    position_G = case.position_G

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= position_G[query]

    G, T = position_G.shape[0], case.k_BKTD.shape[2]
    mask = create_block_mask(seen, B=None, H=None, Q_LEN=G, KV_LEN=T, device=position_G.device)
    gqa = case.q_BHGD.shape[1] != case.k_BKTD.shape[1]

    def run() -> Tensor:
        o_BHGD: Tensor = attention(case.q_BHGD, case.k_BKTD, case.v_BKTD, block_mask=mask, enable_gqa=gqa)
        return o_BHGD

    return run


def sdpa_mask(case: Case) -> Callable[[], Tensor]:
    """One boolean per pair. Repeated keys: with a mask, grouped heads would fall to the slowest backend."""
    key_T = torch.arange(case.k_BKTD.shape[2], device=case.position_G.device)
    mask_GT = key_T <= case.position_G[:, None]
    group = case.q_BHGD.shape[1] // case.k_BKTD.shape[1]

    def run() -> Tensor:
        k, v = (x_BKTD.repeat_interleave(group, dim=1) for x_BKTD in (case.k_BKTD, case.v_BKTD))
        return scaled_dot_product_attention(case.q_BHGD, k, v, attn_mask=mask_GT)

    return run


def rows() -> Iterator[dict[str, Any]]:
    """Every way on every shape, length and keep fraction, forward and backward."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    for model, tokens in dict.fromkeys((model, tokens) for model, tokens, _ in CASES):
        yield from _dense(model, tokens, device, dtype)
    for model, tokens, keep_fraction in CASES:
        case = Case.random(SHAPES[model], tokens, keep_fraction, device, dtype)
        about = {"model": model, "tokens": tokens, "keep_fraction": keep_fraction}
        yield from _ours(about, case)
        torch._dynamo.reset()  # or its limit of recompilations would leave the last cases uncompiled
        yield from _both_ways("flex", about, flex(case, torch.compile(flex_attention, dynamic=False)), case)
        if tokens <= LARGEST_MASK_TOKENS:
            yield from _both_ways("sdpa mask", about, sdpa_mask(case), case)
        torch.cuda.empty_cache()


def _ours(about: dict[str, Any], case: Case) -> Iterator[dict[str, Any]]:
    from jenga_kernels.involved_attention import involved_attention
    from jenga_kernels.involved_attention_backward import involved_attention_backward

    q, k, v = case.q_BHGD.detach(), case.k_BKTD.detach(), case.v_BKTD.detach()
    sees, scale = (case.first_BG, case.last_BG), case.scale
    o_BHGD, lse_BHG = involved_attention(q, k, v, *sees, scale=scale)
    do_BHGD = torch.randn_like(o_BHGD)
    forward = timed(lambda: involved_attention(q, k, v, *sees, scale=scale), case.forward_flops)
    backward = timed(
        lambda: involved_attention_backward(do_BHGD, q, k, v, o_BHGD, lse_BHG, *sees, scale=scale),
        case.backward_flops,
    )
    yield {"kernel": "involved_attention", **about, **forward}
    yield {"kernel": "involved_attention_backward", **about, **backward}


def _dense(model: str, tokens: int, device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    case = Case.random(SHAPES[model], tokens, 1.0, device, dtype)
    gqa = case.q_BHGD.shape[1] != case.k_BKTD.shape[1]
    about = {"model": model, "tokens": tokens, "keep_fraction": 1.0}
    yield from _both_ways(
        "sdpa dense",
        about,
        lambda: scaled_dot_product_attention(case.q_BHGD, case.k_BKTD, case.v_BKTD, is_causal=True, enable_gqa=gqa),
        case,
    )


def _both_ways(name: str, about: dict[str, Any], attend: Callable[[], Tensor], case: Case) -> Iterator[dict[str, Any]]:
    try:
        o_BHGD = attend()
        do_BHGD = torch.randn_like(o_BHGD)
        leaves = (case.q_BHGD, case.k_BKTD, case.v_BKTD)
        yield {"kernel": name, **about, **timed(attend, case.forward_flops)}
        yield {
            "kernel": f"{name} backward",
            **about,
            **timed(lambda: torch.autograd.grad(o_BHGD, leaves, do_BHGD, retain_graph=True), case.backward_flops),
        }
    except torch.OutOfMemoryError:
        yield {"kernel": name, **about, "out_of_memory": True}


def timed(function: Callable[[], Any], flops: float) -> dict[str, float]:
    """p20, p50, p80 in ms, and TFLOP/s at the median."""
    import triton

    p20, p50, p80 = triton.testing.do_bench(function, warmup=25, rep=200, quantiles=[0.2, 0.5, 0.8])
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "tflops": flops / p50 / 1e9}

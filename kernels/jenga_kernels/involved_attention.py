"""Attention for some of the tokens over the keys of all, in Triton: cost falls with the kept fraction.

A query row g is a token whose own key stands at `last[g]` of the key array, and it sees the keys `first[g]..last[g]`:

    o_g = sum over j of softmax_j(s_gj) v_j           s_gj = scale q_g . k_j,  or  cap tanh(scale q_g . k_j / cap)

That one rule is causal attention (first = 0), sliding windows (first = last - w + 1), packed documents (first = the
document's start) and rows taken out of a longer sequence (last = their positions). A row with last = -1 is surplus: it
sees nothing, its output is 0, and it has no key.

Rows must come in the order of their tokens (`first` and `last` ascending), surplus rows after them; a tile of rows
whose tokens lie close together is a dense tile with a masked edge. One program per tile of rows and head streams key
tiles, FlashAttention-2's way (Dao 2023). Backward is involved_attention_backward.py.

Twin: `jenga_kernels.reference.involved_attention`.

Shapes   B batch, H query heads, K key/value heads, G rows (queries), T keys, D head size
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_HEAD_SIZE = 256
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def supports(head_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernels compute this: heads up to 256, bf16, fp16 or fp32."""
    return head_size <= LARGEST_HEAD_SIZE and dtype in _DTYPES


class Tiles(NamedTuple):
    """The fastest of those tried on an H100 (see the benchmark's rows)."""

    rows: int
    keys: int
    warps: int
    stages: int


def _forward_tiles(head_size: int, dtype: torch.dtype) -> Tiles:
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1)
    if head_size <= 64:
        return Tiles(64, 128, 4, 3)
    return Tiles(128, 128, 8, 3) if head_size <= 128 else Tiles(64, 64, 8, 2)


def involved_attention(
    q_BHGD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    first_BG: Tensor,
    last_BG: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output of every row, like q (in memory B x G x H x D), and the log of its softmax's sum, float32 B x H x G.

    Args:
        q_BHGD: queries, any strides. H is a multiple of K.
        k_BKTD, v_BKTD: keys and values, same dtype and head size.
        first_BG, last_BG: int, the range of keys that each row sees, both ends included; last = -1 marks a surplus row.
        scale: positive factor of q . k.
        softcap: cap of the scores (Gemma 2). None: none.

    Raises:
        ValueError: for shapes or dtypes that do not fit together, or that `supports` refuses.
    """
    check(q_BHGD, k_BKTD, v_BKTD, first_BG, last_BG, scale)
    B, H, G, D = q_BHGD.shape
    o_BHGD = q_BHGD.new_empty(B, G, H, D).transpose(1, 2)
    lse_BHG = q_BHGD.new_empty(B, H, G, dtype=torch.float32)
    tiles = _forward_tiles(D, q_BHGD.dtype)
    if G == 0:
        return o_BHGD, lse_BHG
    _forward[(triton.cdiv(G, tiles.rows), B * H)](
        q_BHGD,
        k_BKTD,
        v_BKTD,
        o_BHGD,
        lse_BHG,
        first_BG.to(torch.int32).contiguous(),
        last_BG.to(torch.int32).contiguous(),
        *q_BHGD.stride(),
        *k_BKTD.stride(),
        *v_BKTD.stride(),
        *o_BHGD.stride(),
        G,
        k_BKTD.shape[2],
        H,
        H // k_BKTD.shape[1],
        scale,
        softcap or 0.0,
        HAS_CAP=softcap is not None,
        HEAD_SIZE=D,
        PADDED=max(triton.next_power_of_2(D), 16),
        ROWS=tiles.rows,
        KEYS=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return o_BHGD, lse_BHG


def check(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, scale: float) -> None:
    B, H, G, D = q.shape
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != D or H % k.shape[1]:
        raise ValueError(
            f"queries {tuple(q.shape)} want keys and values {B} x (a divisor of {H}) x T x {D}; got {tuple(k.shape)} "
            f"and {tuple(v.shape)}"
        )
    if not supports(D, q.dtype) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"head size {D} with {q.dtype} queries, {k.dtype} keys and {v.dtype} values is not supported; give at most "
            f"{LARGEST_HEAD_SIZE}, and one of bf16, fp16, fp32 for all"
        )
    if first.shape != (B, G) or last.shape != (B, G):
        raise ValueError(f"first and last must be {B} x {G}, got {tuple(first.shape)} and {tuple(last.shape)}")
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")


@triton.jit
def capped_scores(products, scale, softcap, HAS_CAP: tl.constexpr):
    # Scores in units of log 2, so that exp2 of them is the softmax's numerator.
    LOG2E: tl.constexpr = 1.4426950408889634
    if HAS_CAP:
        return softcap * (2.0 * tl.sigmoid(2.0 * products * scale / softcap) - 1.0) * LOG2E
    return products * (scale * LOG2E)


@triton.jit
def key_ranges(first, last, KEYS: tl.constexpr):
    # Keys that any row sees: begin..end; key tiles that every row sees whole: all_begin..all_end.
    sees = last >= 0
    end = tl.max(last) + 1
    begin = tl.min(tl.where(sees, first, end)) // KEYS * KEYS
    all_begin = (tl.max(tl.where(sees, first, 0)) + KEYS - 1) // KEYS * KEYS
    all_end = (tl.min(tl.where(sees, last, end - 1)) + 1) // KEYS * KEYS
    all_begin = tl.minimum(all_begin, (end + KEYS - 1) // KEYS * KEYS)
    all_end = tl.maximum(all_begin, all_end)
    return begin, all_begin, all_end, end


@triton.jit
def _attend(
    queries, m, total, out, k_tile, v_tile, k_step, v_step, begin, end, keys, first, last, in_head, scale, softcap,
    MASKED: tl.constexpr, HAS_CAP: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    for start in range(begin, end, KEYS):
        j = start + tl.arange(0, KEYS)
        at = tl.cast(start, tl.int64)
        if MASKED:
            k = tl.load(k_tile + at * k_step, mask=in_head[:, None] & (j < keys)[None, :], other=0.0)
            v = tl.load(v_tile + at * v_step, mask=(j < keys)[:, None] & in_head[None, :], other=0.0)
        else:
            k = tl.load(k_tile + at * k_step, mask=in_head[:, None], other=0.0)
            v = tl.load(v_tile + at * v_step, mask=in_head[None, :], other=0.0)
        s = capped_scores(tl.dot(queries, k, input_precision="ieee"), scale, softcap, HAS_CAP)
        if MASKED:
            s = tl.where((j[None, :] >= first[:, None]) & (j[None, :] <= last[:, None]), s, -float("inf"))
        new_m = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - new_m[:, None])
        shrink = tl.exp2(m - new_m)
        total = total * shrink + tl.sum(p, axis=1)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
        m = new_m
    return m, total, out


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, first_ptr, last_ptr,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, o_b, o_h, o_t, o_d,
    rows, keys, heads, group, scale, softcap,
    HAS_CAP: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    g = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    in_head = d < HEAD_SIZE
    exists = g < rows
    first = tl.load(first_ptr + batch * rows + g, mask=exists, other=0)
    last = tl.load(last_ptr + batch * rows + g, mask=exists, other=-1)
    begin, all_begin, all_end, end = key_ranges(first, last, KEYS)

    rows_64 = g.to(tl.int64)
    q_tile = q_ptr + batch * q_b + head * q_h + rows_64[:, None] * q_t + d[None, :] * q_d
    queries = tl.load(q_tile, mask=exists[:, None] & in_head[None, :], other=0.0)
    j = tl.arange(0, KEYS)
    k_tile = k_ptr + batch * k_b + (head // group) * k_h + j[None, :] * k_t + d[:, None] * k_d
    v_tile = v_ptr + batch * v_b + (head // group) * v_h + j[:, None] * v_t + d[None, :] * v_d

    m = tl.full((ROWS,), -1e30, dtype=tl.float32)  # finite: a row that sees nothing yet must not make NaN
    total = tl.zeros((ROWS,), dtype=tl.float32)
    out = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    m, total, out = _attend(
        queries, m, total, out, k_tile, v_tile, k_t, v_t, begin, all_begin, keys, first, last, in_head, scale, softcap,
        MASKED=True, HAS_CAP=HAS_CAP, KEYS=KEYS,
    )  # fmt: skip
    m, total, out = _attend(
        queries, m, total, out, k_tile, v_tile, k_t, v_t, all_begin, all_end, keys, first, last, in_head, scale,
        softcap, MASKED=False, HAS_CAP=HAS_CAP, KEYS=KEYS,
    )  # fmt: skip
    m, total, out = _attend(
        queries, m, total, out, k_tile, v_tile, k_t, v_t, all_end, end, keys, first, last, in_head, scale, softcap,
        MASKED=True, HAS_CAP=HAS_CAP, KEYS=KEYS,
    )  # fmt: skip
    LN2: tl.constexpr = 0.6931471805599453
    sees = (last >= 0) & (total > 0)  # tiles without a mask let surplus rows see, too
    out = tl.where(sees[:, None], out / tl.where(sees, total, 1.0)[:, None], 0.0)
    lse = tl.where(sees, (m + tl.log2(tl.where(sees, total, 1.0))) * LN2, float("inf"))
    o_tile = o_ptr + batch * o_b + head * o_h + rows_64[:, None] * o_t + d[None, :] * o_d
    tl.store(o_tile, out.to(o_ptr.dtype.element_ty), mask=exists[:, None] & in_head[None, :])
    tl.store(lse_ptr + (batch * heads + head) * rows + g, lse, mask=exists)

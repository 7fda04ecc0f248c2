"""Block scores in Triton: pooled positive Q K^T, causal tiles only, T x T never in memory.

    I_mn = max over i in block m, j in block n, i > j, of  (scale / H) * sum over h of max(q_h,i . k_h,j, 0)

Twin: `jenga_kernels.reference.block_scores`, which is this for any layout of blocks. The kernel takes the common one:
one document per sequence, padded on the right if at all, block n holding tokens n b to (n + 1) b - 1.

One program computes a square tile of tokens for all heads: the mean over heads must be complete before the maximum, so
the sum of positive scores stays in registers while the heads stream through. Keys are loaded once per group of query
heads. Each program writes (tile / b)^2 numbers; beside its output of (T / b)^2 floats the kernel needs no memory.

Shapes   B batch, H query heads, K key/value heads, T tokens, N blocks, D head size, S tokens of a pooled cell
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_HEAD_SIZE = 256


def supports(block_tokens: int, head_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernel computes this: blocks of a multiple of 16 tokens, heads up to 256, bf16, fp16 or fp32."""
    return (
        block_tokens % 16 == 0
        and head_size <= LARGEST_HEAD_SIZE
        and dtype in (torch.bfloat16, torch.float16, torch.float32)
    )


def block_scores(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    length_B: Tensor,
    *,
    block_tokens: int,
    scale: float,
    window_tokens: int | None = None,
) -> Tensor:
    """Scores of all block pairs, float32 B x N x N (query block, key block), N = ceil(T / block_tokens).

    Args:
        q_BHTD: queries after RoPE, any strides. H is a multiple of K.
        k_BKTD: keys, same dtype.
        length_B: int, real tokens of each sequence; what follows is padding and scores 0.
        block_tokens: b, a multiple of 16.
        scale: positive factor of q . k.
        window_tokens: of a sliding window: only pairs with i - j < window_tokens ask anything. None: all pairs.

    Raises:
        ValueError: for sizes or dtypes that `supports` refuses, or a scale that is not positive.
    """
    B, H, T, D = q_BHTD.shape
    K = k_BKTD.shape[1]
    if not supports(block_tokens, D, q_BHTD.dtype) or k_BKTD.dtype != q_BHTD.dtype:
        raise ValueError(
            f"block_tokens {block_tokens}, head size {D}, {q_BHTD.dtype} queries and {k_BKTD.dtype} keys are not "
            f"supported; give a multiple of 16, at most {LARGEST_HEAD_SIZE}, and one of bf16, fp16, fp32 for both"
        )
    if scale <= 0 or H % K:
        raise ValueError(f"scale must be positive and query heads a multiple of key heads; got {scale}, {H}, {K}")
    # A cell is the largest power of two that divides the block and fits the tile; larger blocks pool cells below.
    cell_tokens = min(block_tokens & -block_tokens, 64)
    is_wide = D > 128 or q_BHTD.dtype == torch.float32  # two tiles of it would not fit the shared memory
    tile_tokens = 64 if is_wide else 128
    cells_per_tile = tile_tokens // cell_tokens
    tiles = triton.cdiv(T, tile_tokens)
    cells_BCC = q_BHTD.new_zeros(B, tiles * cells_per_tile, tiles * cells_per_tile, dtype=torch.float32)
    _cells[(tiles * (tiles + 1) // 2, B)](
        q_BHTD,
        k_BKTD,
        length_B,
        cells_BCC,
        *q_BHTD.stride(),
        *k_BKTD.stride(),
        cells_BCC.stride(0),
        cells_BCC.stride(1),
        T,
        T if window_tokens is None else window_tokens,
        scale / H,
        KEY_HEADS=K,
        GROUP=H // K,
        HEAD_SIZE=D,
        PADDED_HEAD_SIZE=max(triton.next_power_of_2(D), 16),
        TILE=tile_tokens,
        CELL=cell_tokens,
        num_warps=4 if is_wide else 8,
        num_stages=1 if is_wide else 3,
    )
    return _pool(cells_BCC, block_tokens // cell_tokens, triton.cdiv(T, block_tokens))


def _pool(cells_BCC: Tensor, cells_per_block: int, blocks: int) -> Tensor:
    B, C, _ = cells_BCC.shape
    wanted = blocks * cells_per_block
    if wanted > C:
        cells_BCC = torch.nn.functional.pad(cells_BCC, (0, wanted - C, 0, wanted - C))
    cells_BCC = cells_BCC[:, :wanted, :wanted]
    if cells_per_block == 1:
        return cells_BCC
    return cells_BCC.reshape(B, blocks, cells_per_block, blocks, cells_per_block).amax(dim=(2, 4))


@triton.jit
def _cells(
    q_ptr,
    k_ptr,
    length_ptr,
    out_ptr,
    q_stride_b,
    q_stride_h,
    q_stride_t,
    q_stride_d,
    k_stride_b,
    k_stride_h,
    k_stride_t,
    k_stride_d,
    out_stride_b,
    out_stride_m,
    tokens,
    window_tokens,
    factor,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_HEAD_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    CELL: tl.constexpr,
):
    # Program p of the lower triangle: row m, column n <= m. The float root may be off by one, so it is corrected.
    p = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    m = ((tl.sqrt(8.0 * p.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    m = tl.where(m * (m + 1) // 2 > p, m - 1, m)
    m = tl.where((m + 1) * (m + 2) // 2 <= p, m + 1, m)
    n = p - m * (m + 1) // 2
    if m * TILE - (n * TILE + TILE - 1) >= window_tokens:
        return  # no key of the tile is within any query's window; its cells stay 0

    i = m * TILE + tl.arange(0, TILE)
    j = n * TILE + tl.arange(0, TILE)
    d = tl.arange(0, PADDED_HEAD_SIZE)
    in_head = d < HEAD_SIZE
    q_tile = q_ptr + batch * q_stride_b + i.to(tl.int64)[:, None] * q_stride_t + d[None, :] * q_stride_d
    k_tile = k_ptr + batch * k_stride_b + j.to(tl.int64)[None, :] * k_stride_t + d[:, None] * k_stride_d
    q_mask = (i < tokens)[:, None] & in_head[None, :]
    k_mask = (j < tokens)[None, :] & in_head[:, None]

    asked = tl.zeros((TILE, TILE), dtype=tl.float32)
    for key_head in range(KEY_HEADS):
        keys = tl.load(k_tile + key_head * k_stride_h, mask=k_mask, other=0.0)
        for member in range(GROUP):
            head = key_head * GROUP + member
            queries = tl.load(q_tile + head * q_stride_h, mask=q_mask, other=0.0)
            asked += tl.maximum(tl.dot(queries, keys, input_precision="ieee"), 0.0)

    length = tl.load(length_ptr + batch)
    seen = (i[:, None] > j[None, :]) & (i[:, None] - j[None, :] < window_tokens)
    seen = seen & (i < length)[:, None]  # i > j, so j is real too
    asked = tl.where(seen, asked * factor, 0.0)
    CELLS: tl.constexpr = TILE // CELL
    by_column = tl.max(tl.reshape(asked, (TILE, CELLS, CELL)), axis=2)
    cells = tl.max(tl.reshape(by_column, (CELLS, CELL, CELLS)), axis=1)
    row = m * CELLS + tl.arange(0, CELLS)
    column = n * CELLS + tl.arange(0, CELLS)
    tl.store(out_ptr + batch * out_stride_b + row[:, None] * out_stride_m + column[None, :], cells)

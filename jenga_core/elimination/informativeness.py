"""How informative is a block? As much as the other tokens ask of it (paper, equations 1 and 2).

    I(T_j)   = sum over i != j of S_ij                 a token's informativeness: the attention scores in its column
    I(B_mn)  = max over (i, j) in (m, n) of (1/H) sum over heads of max(S_h,ij, 0)      one query block, one key block
    I(B_n)   = sum over m of I(B_mn)                   the key block's column

The last line is the paper's. It favours early blocks, because more query blocks can see them: block 0 of N is summed
over N rows, block N-1 over one. The column *mean* divides by the number of query blocks that can see n, and measures
better.

Shapes   B batch, H query heads, K key/value heads, T tokens, N blocks, D head size
"""

from __future__ import annotations

from typing import Literal

import torch
from jenga_kernels import reference
from torch import Tensor

from jenga_core.elimination.blocks import Blocks


def informativeness(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    blocks: Blocks,
    *,
    scale: float,
    column: Literal["mean", "sum"],
    window_tokens: int | None = None,
) -> Tensor:
    """Exact scores of all key blocks, from one layer's queries and keys after RoPE. No gradient. float32 B x N.

    In a layer whose attention slides, a block is asked only from within `window_tokens`, and its mean is over those.
    """
    with torch.no_grad():
        scores_BNN = block_scores(q_BHTD, k_BKTD, blocks, scale=scale, window_tokens=window_tokens)
        reach_blocks = reach_of_window(window_tokens, blocks.block_tokens)
        return pool_columns(scores_BNN, blocks.document_of_block_BN, column, reach_blocks)


def block_scores(
    q_BHTD: Tensor, k_BKTD: Tensor, blocks: Blocks, *, scale: float, window_tokens: int | None = None
) -> Tensor:
    """I(B_mn), float32 B x N x N: by the Triton kernel on a GPU where the blocks are plain, else by its twin."""
    if q_BHTD.is_cuda and blocks.is_plain:
        from jenga_kernels import block_scores as kernel

        if kernel.supports(blocks.block_tokens, q_BHTD.shape[-1], q_BHTD.dtype):
            return kernel.block_scores(
                q_BHTD,
                k_BKTD,
                blocks.length_B,
                block_tokens=blocks.block_tokens,
                scale=scale,
                window_tokens=window_tokens,
            )[:, : blocks.num_blocks, : blocks.num_blocks]
    return reference.block_scores(
        q_BHTD,
        k_BKTD,
        blocks.block_of_token_BT,
        blocks.document_of_block_BN,
        scale=scale,
        window_tokens=window_tokens,
    )


def reach_of_window(window_tokens: int | None, block_tokens: int) -> int | None:
    """How many blocks back a block can ask; None: to the first."""
    if window_tokens is None:
        return None
    return (window_tokens + block_tokens - 2) // block_tokens  # from its first token, w - 1 tokens into those before


def pool_columns(
    scores_BNN: Tensor,
    document_of_block_BN: Tensor,
    column: Literal["mean", "sum"],
    reach_blocks: int | None = None,
) -> Tensor:
    """Key blocks' scores from the scores of block pairs (B x query block x key block, 0 where nothing is asked)."""
    scores_BN = scores_BNN.sum(dim=1)
    if column == "mean":
        scores_BN = scores_BN / query_blocks_that_see(document_of_block_BN, reach_blocks)
    return scores_BN


def query_blocks_that_see(document_of_block_BN: Tensor, reach_blocks: int | None = None) -> Tensor:
    """Number of query blocks m >= n in the document of key block n, and at most `reach_blocks` after it; int64 B x N,
    at least 1."""
    same_BNN = document_of_block_BN[:, :, None] == document_of_block_BN[:, None, :]
    if reach_blocks is not None:
        same_BNN = same_BNN.triu(-reach_blocks)
    return same_BNN.tril().sum(dim=1)

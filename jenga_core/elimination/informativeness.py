"""How informative is a block? As much as the other tokens ask of it (paper, equations 1 and 2).

    I(T_j)   = sum over i != j of S_ij                 a token's informativeness: the attention scores in its column
    I(B_mn)  = max over (i, j) in (m, n) of (1/H) sum over heads of max(S_h,ij, 0)      one query block, one key block
    I(B_n)   = sum over m of I(B_mn)                   the key block's column

The last line is the paper's, one of three ways to pool a column:

    sum        favours early blocks, because more query blocks can see them: block 0 of N is summed over N rows, block
               N-1 over one
    mean       divides by the number of query blocks that see n; favours late blocks, because attention likes what is
               near and the last blocks are near to all that see them
    relative   the mean of I(B_mn) / E_{m-n}, where E_d is the sequence's mean score at distance d: 1 is a block that
               is asked as much as is usual from there. What is left is content

Whose asking counts is a second choice. The paper's sums run over all queries. When few blocks carry loss, most of these
ask for what the loss does not need: with `asking_BN` only the targets' rows count.

Shapes   B batch, H query heads, K key/value heads, T tokens, N blocks, D head size
"""

from __future__ import annotations

import torch
from jenga_kernels import reference
from torch import Tensor

from jenga_core.config import Column
from jenga_core.elimination.blocks import Blocks


def informativeness(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    blocks: Blocks,
    *,
    scale: float,
    column: Column,
    window_tokens: int | None = None,
    asking_BN: Tensor | None = None,
) -> Tensor:
    """Exact scores of all key blocks, from one layer's queries and keys after RoPE. No gradient. float32 B x N.

    In a layer whose attention slides, a block is asked only from within `window_tokens`, and its mean is over those.
    """
    with torch.no_grad():
        scores_BNN = block_scores(q_BHTD, k_BKTD, blocks, scale=scale, window_tokens=window_tokens)
        reach_blocks = reach_of_window(window_tokens, blocks.block_tokens)
        return pool_columns(scores_BNN, blocks, column, reach_blocks, asking_BN)


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
    blocks: Blocks,
    column: Column,
    reach_blocks: int | None = None,
    asking_BN: Tensor | None = None,
) -> Tensor:
    """Key blocks' scores from the scores of block pairs (B x query block x key block); float32 B x N.

    Args:
        reach_blocks: how many blocks back a block can ask; None: to the first.
        asking_BN: bool, the query blocks that count; None: all. A key block that none of them sees scores 0.
    """
    seen_BNN = blocks.seen(reach_blocks)
    if column == "relative":
        scores_BNN = scores_BNN / mean_by_distance(scores_BNN, blocks, reach_blocks)
    if asking_BN is not None:
        seen_BNN = seen_BNN & asking_BN[:, :, None]
    scores_BN = (scores_BNN * seen_BNN).sum(dim=1)
    return scores_BN if column == "sum" else scores_BN / seen_BNN.sum(dim=1).clamp(min=1)


def mean_by_distance(scores_BNN: Tensor, blocks: Blocks, reach_blocks: int | None = None) -> Tensor:
    """E_{m-n} for each pair, B x N x N, above 0: the mean over the document's pairs that lie as far apart.

    The first block of a document, the attention sink, is asked by all from everywhere; it has no part in the means.
    Where that leaves nothing, or nothing but zeros, the mean reads 1.
    """
    N = scores_BNN.shape[1]
    block_N = torch.arange(N, device=scores_BNN.device)
    counts_BNN = blocks.seen(reach_blocks) & ~blocks.is_first_of_document()[:, None, :]

    def sums(values_BNN: Tensor) -> Tensor:
        """Over the queries of a document, B x N (query) x N (distance)."""
        if blocks.is_plain:
            return _by_distance(values_BNN).sum(dim=1, keepdim=True).expand(-1, N, -1)
        first_BN = torch.where(blocks.is_first_of_document(), block_N, 0).cummax(dim=1).values
        end_BN = first_BN + blocks.same_document().sum(dim=2)
        up_to_BNN = torch.nn.functional.pad(_by_distance(values_BNN).double().cumsum(dim=1), (0, 0, 1, 0))
        last, before = (up_to_BNN.gather(1, row_BN[:, :, None].expand(-1, -1, N)) for row_BN in (end_BN, first_BN))
        return (last - before).to(values_BNN.dtype)

    means_BNN = sums(scores_BNN * counts_BNN) / sums(counts_BNN.to(scores_BNN.dtype)).clamp(min=1)
    distance_NN = (block_N[:, None] - block_N).clamp(min=0)
    return torch.where(means_BNN > 0, means_BNN, 1.0).gather(2, distance_NN.expand_as(scores_BNN))


def _by_distance(values_BNN: Tensor) -> Tensor:
    """B x N x N: the value of the pair (m, m - d) at [m, d], for d = 0 .. m; 0 beyond.

    Rows are shifted against each other by writing them N wide and reading them 2N - 1 wide, so that a diagonal becomes
    a column: no atomics, and a GPU gives the same bits every time.
    """
    N = values_BNN.shape[1]
    wide = torch.nn.functional.pad(values_BNN.flip(2), (0, N)).flatten(1)[:, : N * (2 * N - 1)]
    return wide.view(-1, N, 2 * N - 1)[:, :, N - 1 :]

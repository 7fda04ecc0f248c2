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
    q_BHTD: Tensor, k_BKTD: Tensor, blocks: Blocks, *, scale: float, column: Literal["mean", "sum"]
) -> Tensor:
    """Exact scores of all key blocks, from one layer's queries and keys after RoPE. No gradient. float32 B x N."""
    with torch.no_grad():
        scores_BNN = reference.block_scores(
            q_BHTD, k_BKTD, blocks.block_of_token_BT, blocks.document_of_block_BN, scale=scale
        )
        return pool_columns(scores_BNN, blocks.document_of_block_BN, column)


def pool_columns(scores_BNN: Tensor, document_of_block_BN: Tensor, column: Literal["mean", "sum"]) -> Tensor:
    """Key blocks' scores from the scores of block pairs (B x query block x key block, 0 where nothing is asked)."""
    scores_BN = scores_BNN.sum(dim=1)
    if column == "mean":
        scores_BN = scores_BN / query_blocks_that_see(document_of_block_BN)
    return scores_BN


def query_blocks_that_see(document_of_block_BN: Tensor) -> Tensor:
    """Number of query blocks m >= n in the document of key block n; int64 B x N, at least 1."""
    same_BNN = document_of_block_BN[:, :, None] == document_of_block_BN[:, None, :]
    return same_BNN.tril().sum(dim=1)

"""Plain-PyTorch twins: what each kernel means, on any device and for any size.

Shapes   B batch, H query heads, K key/value heads, T tokens, N blocks, D head size
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_scores(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    block_of_token_BT: Tensor,
    document_of_block_BN: Tensor,
    *,
    scale: float,
    window_tokens: int | None = None,
    query_chunk_tokens: int = 128,
) -> Tensor:
    """How much each query block asks of each key block.

        S_h,ij = scale * q_h,i . k_h,j          i > j, both in the same document
        I_mn   = max over i in block m, j in block n of  (1/H) * sum over h of max(S_h,ij, 0)

    Paper, section on information-driven token elimination (equations 1 and 2), with queries and keys after RoPE. Only
    positive scores count, a token does not ask anything of itself (i = j is left out), and padding asks and is asked
    nothing. T x T never exists; the largest temporary is B x H x query_chunk_tokens x T.

    Args:
        q_BHTD: queries, any float dtype. H is a multiple of K (grouped-query attention).
        k_BKTD: keys.
        block_of_token_BT: int64, the block of each token, -1 for padding. Blocks are numbered in token order.
        document_of_block_BN: int64, the document of each block, -1 where a sequence has fewer than N blocks.
        scale: multiplies q . k, as in attention; usually D ** -0.5.
        window_tokens: of a sliding window: only pairs with i - j < window_tokens ask anything. None: all pairs.

    Returns:
        float32 (float64 for float64) B x N (query block) x N (key block), 0 where nothing is asked.
    """
    B, H, T, _ = q_BHTD.shape
    K, N = k_BKTD.shape[1], document_of_block_BN.shape[1]
    k_BHDT = k_BKTD.repeat_interleave(H // K, dim=1).transpose(2, 3)
    position_T = torch.arange(T, device=q_BHTD.device)
    real_BT = block_of_token_BT >= 0
    block_BT = block_of_token_BT.clamp(min=0)
    document_BT = document_of_block_BN.gather(1, block_BT)
    precise = torch.promote_types(q_BHTD.dtype, torch.float32)
    scores_BNN = q_BHTD.new_zeros(B, N, N, dtype=precise)
    window_tokens = T if window_tokens is None else window_tokens

    for first in range(0, T, query_chunk_tokens):
        chunk = slice(first, min(first + query_chunk_tokens, T))
        asked_BCT = (q_BHTD[:, :, chunk] @ k_BHDT).to(precise).mul_(scale).clamp_(min=0).mean(dim=1)
        seen_BCT = (
            (position_T[chunk, None] > position_T)
            & (position_T[chunk, None] - position_T < window_tokens)
            & (document_BT[:, chunk, None] == document_BT[:, None, :])
            & real_BT[:, chunk, None]
            & real_BT[:, None, :]
        )
        asked_BCT.masked_fill_(~seen_BCT, 0)
        C = asked_BCT.shape[1]
        by_key_block_BCN = asked_BCT.new_zeros(B, C, N).scatter_reduce_(
            2, block_BT[:, None, :].expand(B, C, T), asked_BCT, "amax"
        )
        scores_BNN.scatter_reduce_(1, block_BT[:, chunk, None].expand(B, C, N), by_key_block_BCN, "amax")
    return scores_BNN

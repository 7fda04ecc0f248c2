"""The reference twin against the formula, written as slow loops over its symbols."""

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor

from jenga_core.elimination.blocks import Blocks, split_into_blocks
from tests.support.assertions import assert_within_budget


def by_the_formula(q_BHTD: Tensor, k_BKTD: Tensor, blocks: Blocks, scale: float, window: int | None) -> Tensor:
    B, H, T, _ = q_BHTD.shape
    group = H // k_BKTD.shape[1]
    scores_BNN = torch.zeros(B, blocks.num_blocks, blocks.num_blocks, dtype=torch.float64)
    for b in range(B):
        for i in range(T):
            for j in range(0 if window is None else max(0, i - window + 1), i):  # i != j, causal
                m, n = int(blocks.block_of_token_BT[b, i]), int(blocks.block_of_token_BT[b, j])
                if m < 0 or n < 0 or blocks.document_of_block_BN[b, m] != blocks.document_of_block_BN[b, n]:
                    continue
                s_H = [scale * float(q_BHTD[b, h, i] @ k_BKTD[b, h // group, j]) for h in range(H)]
                asked = sum(s for s in s_H if s > 0) / H
                scores_BNN[b, m, n] = max(float(scores_BNN[b, m, n]), asked)
    return scores_BNN


@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize(
    ("heads", "key_heads", "tokens", "block_tokens", "chunk"),
    [(4, 4, 16, 4, 16), (4, 2, 23, 4, 8), (3, 1, 19, 7, 5), (2, 2, 9, 16, 128)],
)
def test_block_scores(
    heads: int, key_heads: int, tokens: int, block_tokens: int, chunk: int, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(2, heads, tokens, 8, generator=generator)
    k = torch.randn(2, key_heads, tokens, 8, generator=generator)
    mask = torch.ones(2, tokens)
    mask[1, tokens - 5 :] = 0
    positions = torch.arange(tokens).repeat(2, 1)
    positions[0, 6:] -= 6  # a second document in sequence 0
    blocks = split_into_blocks(2, tokens, block_tokens=block_tokens, attention_mask_BT=mask, position_ids=positions)
    ours = reference.block_scores(
        q,
        k,
        blocks.block_of_token_BT,
        blocks.document_of_block_BN,
        scale=0.3,
        window_tokens=window,
        query_chunk_tokens=chunk,
    )
    truth = by_the_formula(q.double(), k.double(), blocks, 0.3, window)
    assert (truth.max() > 0) == (window != 1)  # who sees nobody but itself asks nothing
    assert_within_budget("block_scores", ours=ours, truth=truth)

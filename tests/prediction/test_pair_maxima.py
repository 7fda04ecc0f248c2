"""The same scores as those of the twin of the exact kernel, and the gradient that autograd finds through a maximum."""

from __future__ import annotations

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.prediction.pair_maxima import pair_maxima

BLOCK, BLOCKS = 4, 5
TOKENS = BLOCK * BLOCKS


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, TOKENS, 6, generator=generator, dtype=torch.float64)
    return q.requires_grad_(), torch.randn(2, TOKENS, 6, generator=generator, dtype=torch.float64).requires_grad_()


def of_blocks(q_HTd: Tensor, block_M: Tensor) -> Tensor:
    return q_HTd.view(4, BLOCKS, BLOCK, 6)[:, block_M].flatten(1, 2)


@pytest.mark.parametrize("window_tokens", [None, 6])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [1, 4], [0]])
def test_scores_and_gradients(chosen: list[int], window_tokens: int | None) -> None:
    block_M = torch.tensor(chosen)
    q, k = vectors()
    ours = pair_maxima(of_blocks(q, block_M), k, block_M, block_tokens=BLOCK, scale=0.3, window_tokens=window_tokens)
    weight = torch.rand(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((ours * weight).sum(), (q, k))

    blocks = split_into_blocks(1, TOKENS, block_tokens=BLOCK)
    exact = reference.block_scores(
        q[None],
        k[None],
        blocks.block_of_token_BT,
        blocks.document_of_block_BN,
        scale=0.3,
        window_tokens=window_tokens,
    )[0, block_M]
    torch.testing.assert_close(ours, exact.detach())

    token = torch.arange(TOKENS)
    distance = token[:, None] - token
    seen = (distance > 0) & (distance < (window_tokens or TOKENS))
    products = (q @ k.repeat_interleave(2, dim=0).transpose(1, 2) * 0.3).relu().mean(dim=0) * seen
    plain = products.view(BLOCKS, BLOCK, BLOCKS, BLOCK).amax(dim=(1, 3))[block_M]
    truth = torch.autograd.grad((plain * weight).sum(), (q, k))
    for name, mine, theirs in zip(("q", "k"), gradients, truth, strict=True):
        # amax shares the gradient of a tie, and pairs that are not seen tie at 0: their share comes to nothing
        torch.testing.assert_close(mine, theirs, msg=name)


def test_what_is_not_seen_gets_no_gradient() -> None:
    q, k = vectors()
    first = torch.tensor([0])
    scores = pair_maxima(of_blocks(q, first), k, first, block_tokens=BLOCK, scale=1.0)
    assert scores[0, 1:].tolist() == [0, 0, 0, 0]
    scores.sum().backward()
    assert k.grad is not None
    assert not k.grad[:, BLOCK:].any()

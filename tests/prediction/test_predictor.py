"""The formula, token by token: packed, padded and ragged blocks alike."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from jenga_core.elimination.blocks import Blocks, split_into_blocks
from jenga_core.prediction.predictor import LayerPredictor, Predictors


def predictor(window_tokens: int | None = None) -> LayerPredictor:
    """Four query heads over two key heads, with four coordinates each."""
    torch.manual_seed(0)
    made = LayerPredictor(
        12,
        query_heads=4,
        key_heads=2,
        head_size=4,
        query_hidden=(9, 7),
        key_hidden=(8, 6),
        scale=1.7,
        window_tokens=window_tokens,
    )
    made.speed_KC.copy_(torch.tensor([[1.0, 0.1], [0.3, 0.0]]))
    return made


def batch(*, block_tokens: int = 4) -> tuple[Tensor, Blocks]:
    """Sequence 0 holds two documents, sequence 1 is padded on the right and sequence 2 on the left."""
    mask = torch.ones(3, 23, dtype=torch.long)
    mask[1, 18:] = 0
    mask[2, :6] = 0
    positions = torch.arange(23).repeat(3, 1)
    positions[0, 10:] -= 10
    positions[2] = (positions[2] - 6).clamp(min=1)
    positions[2, 6] = 0
    blocks = split_into_blocks(3, 23, block_tokens=block_tokens, attention_mask_BT=mask, position_ids=positions)
    x_BTE = torch.randn(3, 23, 12, generator=torch.Generator().manual_seed(1)) * 100
    return x_BTE, blocks


def by_the_formula(model: LayerPredictor, x_BTE: Tensor, blocks: Blocks) -> Tensor:
    B, T, _ = x_BTE.shape
    N = blocks.num_blocks
    scores_BNN = torch.zeros(B, N, N)

    def vectors(network: torch.nn.Module, x: Tensor) -> list[list[complex]]:
        """Of each head, two pairs of coordinates as complex numbers."""
        of_heads = network(x / math.sqrt(float(x.square().mean()))).view(-1, 2, 2)
        return [[complex(u, v) for u, v in zip(*head.tolist(), strict=True)] for head in of_heads]

    for b in range(B):
        for i in range(T):
            for j in range(i):
                m, n = blocks.block_of_token_BT[b, [i, j]].tolist()
                if min(m, n) < 0 or blocks.document_of_block_BN[b, m] != blocks.document_of_block_BN[b, n]:
                    continue
                if model.window_tokens is not None and i - j >= model.window_tokens:
                    continue
                asks, answers = vectors(model.query, x_BTE[b, i]), vectors(model.key, x_BTE[b, j])
                score = 0.0
                for head in range(4):
                    turns = [cmath.rect(1, (i - j) * float(speed)) for speed in model.speed_KC[head // 2]]
                    pairs = zip(asks[head], turns, answers[head // 2], strict=True)
                    product = sum((ask * turn * answer.conjugate()).real for ask, turn, answer in pairs)
                    score += max(model.scale * product, 0) / 4
                scores_BNN[b, m, n] = max(float(scores_BNN[b, m, n]), score)
    return scores_BNN


@pytest.mark.parametrize("block_tokens", [4, 5, 64])
@pytest.mark.parametrize("window_tokens", [None, 5])
def test_pair_scores(block_tokens: int, window_tokens: int | None) -> None:
    model = predictor(window_tokens)
    x_BTE, blocks = batch(block_tokens=block_tokens)
    with torch.no_grad():
        truth = by_the_formula(model, x_BTE, blocks)
    torch.testing.assert_close(model.pair_scores(x_BTE, blocks), truth, rtol=1e-5, atol=1e-5)
    assert truth.count_nonzero() > 0.5 * blocks.seen(model.reach_blocks(blocks)).sum()


@pytest.mark.parametrize("column", ["mean", "sum"])
def test_columns_are_pooled_as_those_of_exact_scores(column: str) -> None:
    model = predictor()
    x_BTE, blocks = batch()
    pairs_BNN = model.pair_scores(x_BTE, blocks)
    scores_BN = model.scores(x_BTE, blocks, column=column)  # type: ignore[arg-type]
    counts_BN = blocks.seen().sum(dim=1).clamp(min=1) if column == "mean" else 1
    torch.testing.assert_close(scores_BN, pairs_BNN.sum(dim=1) / counts_BN)
    assert not scores_BN.requires_grad
    assert scores_BN.dtype == torch.float32


def test_padding_and_the_size_of_the_stream_have_no_effect() -> None:
    model = predictor()
    x_BTE, blocks = batch()
    before = model.scores(x_BTE, blocks, column="mean")
    x_BTE[blocks.block_of_token_BT < 0] = float("nan")
    torch.testing.assert_close(model.scores(x_BTE * 50, blocks, column="mean"), before)


def test_sequences_do_not_look_at_each_other() -> None:
    model = predictor()
    x_BTE, _ = batch()
    together = split_into_blocks(3, 23, block_tokens=4)
    alone = split_into_blocks(1, 23, block_tokens=4)
    scores_BN = model.scores(x_BTE, together, column="mean")
    for b in range(3):
        torch.testing.assert_close(model.scores(x_BTE[b : b + 1], alone, column="mean")[0], scores_BN[b])


def test_half_precision_streams_are_taken() -> None:
    model = predictor()
    x_BTE, blocks = batch()
    half = model.scores(x_BTE.bfloat16(), blocks, column="mean")
    torch.testing.assert_close(half, model.scores(x_BTE, blocks, column="mean"), rtol=0.1, atol=0.02)


def test_predictors_by_layer() -> None:
    first, second = predictor(), predictor()
    both = Predictors({11: second, 3: first})
    assert both.layers == (3, 11)
    assert both[11] is second
    assert both.num_parameters == 2 * first.num_parameters == sum(p.numel() for p in both.parameters())

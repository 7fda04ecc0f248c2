"""The formula, token by token: packed, padded and ragged blocks alike."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from jenga_core.elimination.blocks import Blocks, split_into_blocks
from jenga_core.prediction.predictor import LayerPredictor, Predictors


def predictor(reach_blocks: int | None = None) -> LayerPredictor:
    torch.manual_seed(0)
    made = LayerPredictor(12, query_hidden=(9, 7), key_hidden=(8, 6), rank=6, reach_blocks=reach_blocks)
    made.scale.fill_(1.7)
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
    for b in range(B):

        def mean_of_block(network: torch.nn.Module, n: int, b: int = b) -> Tensor:
            rows = [x_BTE[b, t] for t in range(T) if blocks.block_of_token_BT[b, t] == n]
            return torch.stack([network(x / math.sqrt(float(x.square().mean()))) for x in rows]).mean(dim=0)

        for m in range(N):
            for n in range(m + 1):
                document_m, document_n = blocks.document_of_block_BN[b, [m, n]].tolist()
                if document_m < 0 or document_m != document_n:
                    continue
                if model.reach_blocks is not None and m - n > model.reach_blocks:
                    continue
                asks, answers = mean_of_block(model.query, m).tolist(), mean_of_block(model.key, n).tolist()
                score = 0.0
                for d in range(3):  # rank 6: three pairs of coordinates, as complex numbers
                    turned = cmath.rect(1, (m - n) / 1000 ** (d / 3))
                    product = complex(asks[d], asks[d + 3]) * turned * complex(answers[d], -answers[d + 3])
                    score += product.real
                scores_BNN[b, m, n] = model.scale * score
    return scores_BNN


@pytest.mark.parametrize("block_tokens", [4, 5, 64])
@pytest.mark.parametrize("reach_blocks", [None, 1])
def test_pair_scores(block_tokens: int, reach_blocks: int | None) -> None:
    model = predictor(reach_blocks)
    x_BTE, blocks = batch(block_tokens=block_tokens)
    with torch.no_grad():
        truth = by_the_formula(model, x_BTE, blocks)
        torch.testing.assert_close(model.pair_scores(x_BTE, blocks), truth, rtol=1e-5, atol=1e-5)
    assert truth.count_nonzero() == blocks.seen(reach_blocks).sum()


@pytest.mark.parametrize("column", ["mean", "sum"])
def test_columns_are_pooled_as_those_of_exact_scores(column: str) -> None:
    model = predictor()
    x_BTE, blocks = batch()
    pairs_BNN = model.pair_scores(x_BTE, blocks)
    scores_BN = model.scores(x_BTE, blocks, column=column)  # type: ignore[arg-type]
    counts_BN = blocks.seen().sum(dim=1).clamp(min=1) if column == "mean" else 1
    torch.testing.assert_close(scores_BN, pairs_BNN.detach().sum(dim=1) / counts_BN)
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


def test_gradients_reach_every_weight_and_half_precision_streams_are_taken() -> None:
    model = predictor()
    x_BTE, blocks = batch()
    model.pair_scores(x_BTE.bfloat16(), blocks).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_predictors_by_layer() -> None:
    first, second = predictor(), predictor()
    both = Predictors({11: second, 3: first})
    assert both.layers == (3, 11)
    assert both[11] is second
    assert both.num_parameters == 2 * first.num_parameters == sum(p.numel() for p in both.parameters())

"""Block scores without T x T: two small networks per layer that selects (paper, context-aware pattern prediction).

Exact scores ask every token about every other. A predictor looks at each token once, makes one short vector per block
and lets the blocks, T / b of them, ask each other:

    f(x)    = W3 relu(W2 relu(W1 x / rms(x)))                three low-rank matrices, one such network for Q, one for K
    I(Q)_m  = mean over the tokens i of block m of f_Q(x_i)                        in R^r
    I(K)_n  = mean over the tokens j of block n of f_K(x_j)                        in R^r
    I_mn    = s (R_m I(Q)_m) . (R_n I(K)_n)  m >= n, both in the same document     predicts I(B_mn)
    I_n     = the columns of I_mn, pooled as those of exact scores are             predicts I(B_n)

Where we differ from the paper:

- Its x is the token's embedding. Ours is the residual stream as it enters the layer, which is what the layer's own
  queries and keys are made from: a layer in the middle, where the carried selection enters, needs it. Outlier channels
  of it reach 10^4, hence the division by the root mean square.
- Exact scores are taken after RoPE and change with distance, but x knows of no position. R_n does for blocks what RoPE
  does for tokens: it turns pairs of coordinates by n times an angle, so that the product depends on m - n. Without it,
  even exact scores of unrotated queries and keys choose other blocks.
- s, a constant, is the mean exact score: predictions have the unit of exact scores.

Shapes   B batch, T tokens, N blocks, E hidden size, r rank, C = r / 2 pairs of coordinates, P real tokens of a batch
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from jenga_core.elimination.blocks import Blocks
from jenga_core.elimination.informativeness import pool_columns

ROTATION_BASE = 1000.0
"""R turns by 1 radian per block in its fastest pair of coordinates, and by about 1 / 1000 in its slowest."""


class TokenNetwork(nn.Module):
    """f: three matrices with ReLU between, applied to every token alike. Its two hidden sizes may shrink."""

    def __init__(self, hidden_size: int, hidden: tuple[int, int], rank: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden_size, hidden[0], bias=False)
        self.second = nn.Linear(hidden[0], hidden[1], bias=False)
        self.third = nn.Linear(hidden[1], rank, bias=False)

    @property
    def hidden(self) -> tuple[int, int]:
        """Neurons after the first and after the second matrix."""
        return self.first.out_features, self.second.out_features

    def forward(self, x_PE: Tensor) -> Tensor:
        """P x r."""
        return self.third(self.second(self.first(x_PE).relu()).relu())


class LayerPredictor(nn.Module):
    """Predicted block scores of one layer."""

    scale: Tensor

    def __init__(
        self,
        hidden_size: int,
        *,
        query_hidden: tuple[int, int],
        key_hidden: tuple[int, int],
        rank: int,
        reach_blocks: int | None = None,
    ) -> None:
        """
        Args:
            hidden_size: E.
            rank: r, even.
            reach_blocks: how many blocks back the layer's attention reaches; None: to the first.
        """
        super().__init__()
        self.query = TokenNetwork(hidden_size, query_hidden, rank)
        self.key = TokenNetwork(hidden_size, key_hidden, rank)
        self.register_buffer("scale", torch.ones(()))
        self.reach_blocks = reach_blocks

    @property
    def hidden_size(self) -> int:
        """E."""
        return self.query.first.in_features

    def pair_scores(self, x_BTE: Tensor, blocks: Blocks) -> Tensor:
        """I_mn: float32 B x N (query block) x N (key block), 0 where the key block is not seen.

        Args:
            x_BTE: the residual stream as it enters the layer, any float dtype; what lies on padding has no effect.
        """
        x_PE = x_BTE[blocks.block_of_token_BT >= 0].float()
        x_PE = x_PE * x_PE.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt()
        tokens_BN = blocks.token_counts()
        asks_BNR, answers_BNR = (
            _rotated(_mean_of_blocks(network(x_PE), tokens_BN)) for network in (self.query, self.key)
        )
        scores_BNN = asks_BNR @ answers_BNR.transpose(1, 2)
        return (self.scale * scores_BNN).masked_fill(~blocks.seen(self.reach_blocks), 0)

    def pool(self, scores_BNN: Tensor, blocks: Blocks, column: Literal["mean", "sum"]) -> Tensor:
        """Scores of block pairs, predicted or exact, to scores of key blocks."""
        return pool_columns(scores_BNN, blocks.document_of_block_BN, column, self.reach_blocks)

    def scores(self, x_BTE: Tensor, blocks: Blocks, *, column: Literal["mean", "sum"]) -> Tensor:
        """I_n: float32 B x N, without gradient; takes the place of `informativeness`."""
        with torch.no_grad():
            return self.pool(self.pair_scores(x_BTE, blocks), blocks, column)

    @property
    def num_parameters(self) -> int:
        """Weights."""
        return sum(parameter.numel() for parameter in self.parameters())


class Predictors(nn.Module):
    """The predictors of one model, by layer."""

    def __init__(self, by_layer: Mapping[int, LayerPredictor]) -> None:
        super().__init__()
        self._by_layer = nn.ModuleDict({str(layer): by_layer[layer] for layer in sorted(by_layer)})

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that have one, ascending."""
        return tuple(int(name) for name in self._by_layer)

    def __getitem__(self, layer: int) -> LayerPredictor:
        predictor = self._by_layer[str(layer)]
        assert isinstance(predictor, LayerPredictor)
        return predictor

    @property
    def num_parameters(self) -> int:
        """Weights of all layers."""
        return sum(parameter.numel() for parameter in self.parameters())


def _mean_of_blocks(values_PR: Tensor, tokens_BN: Tensor) -> Tensor:
    """B x N x r. A block's tokens lie side by side, so this is a reduction over segments: without atomics, so that a
    GPU gives the same bits every time."""
    sums_SR = torch.segment_reduce(values_PR, "sum", lengths=tokens_BN.flatten(), axis=0, initial=0)
    return sums_SR.view(*tokens_BN.shape, -1) / tokens_BN.clamp(min=1).unsqueeze(-1)


def _rotated(vectors_BNR: Tensor) -> Tensor:
    """R_n applied to the vector of each block n: coordinates d and r / 2 + d turned by n / base^(2d / r)."""
    N, half = vectors_BNR.shape[1], vectors_BNR.shape[2] // 2
    block_N = torch.arange(N, device=vectors_BNR.device, dtype=torch.float32)
    speed_C = ROTATION_BASE ** (-torch.arange(half, device=vectors_BNR.device) / half)
    angle_NC = block_N[:, None] * speed_C
    cos_NC, sin_NC = angle_NC.cos(), angle_NC.sin()
    u_BNC, v_BNC = vectors_BNR.split(half, dim=2)
    return torch.cat([u_BNC * cos_NC - v_BNC * sin_NC, u_BNC * sin_NC + v_BNC * cos_NC], dim=2)

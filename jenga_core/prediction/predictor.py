"""Block scores without T x T: two small networks per layer that selects (paper, context-aware pattern prediction).

Exact scores ask every token about every other. A predictor looks at each token once, makes one short vector per block
and lets the blocks, T / b of them, ask each other:

    f(x)    = W3 relu(W2 relu(W1 x / rms(x)))                three low-rank matrices, one such network for Q, one for K
    I(Q)_m  = mean over the tokens i of block m of f_Q(x_i)                        in R^r
    I(K)_n  = mean over the tokens j of block n of f_K(x_j)                        in R^r
    I_mn    = s I(Q)_m . I(K)_n              m >= n, both in the same document     predicts I(B_mn)
    I_n     = the columns of I_mn, pooled as those of exact scores are             predicts I(B_n)

The paper's x is the token's embedding. Ours is the residual stream as it enters the layer: it is what the layer's own
queries and keys are made from, so a layer in the middle, which the carried selection enters at, can be predicted well.
Its outlier channels reach 10^4, hence the division by the root mean square. s, a constant, is the mean exact score:
predictions have the unit of exact scores.

Shapes   B batch, T tokens, N blocks, E hidden size, r rank
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from jenga_core.elimination.blocks import Blocks
from jenga_core.elimination.informativeness import pool_columns


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
        """P x r for P tokens."""
        return self.third(self.second(self.first(x_PE).relu()).relu())


class LayerPredictor(nn.Module):
    """Predicted block scores of one layer."""

    scale: Tensor

    def __init__(self, hidden_size: int, *, query: tuple[int, int], key: tuple[int, int], rank: int) -> None:
        super().__init__()
        self.query = TokenNetwork(hidden_size, query, rank)
        self.key = TokenNetwork(hidden_size, key, rank)
        self.register_buffer("scale", torch.ones(()))

    def block_scores(self, x_BTE: Tensor, blocks: Blocks) -> Tensor:
        """I_mn: float32 B x N (query block) x N (key block), 0 where the key block is not seen. Differentiable in the
        weights.

        Args:
            x_BTE: the residual stream as it enters the layer, any float dtype; what lies on padding has no effect.
        """
        is_real_BT = blocks.block_of_token_BT >= 0
        x_PE = x_BTE[is_real_BT].float()
        x_PE = x_PE * x_PE.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt()
        tokens_BN = blocks.token_counts()
        asks_BNR, answers_BNR = (_mean_of_blocks(network(x_PE), tokens_BN) for network in (self.query, self.key))
        scores_BNN = self.scale * (asks_BNR @ answers_BNR.transpose(1, 2))
        return scores_BNN.masked_fill(~blocks.seen(), 0)

    def scores(self, x_BTE: Tensor, blocks: Blocks, *, column: Literal["mean", "sum"]) -> Tensor:
        """I_n: float32 B x N, without gradient; takes the place of `informativeness`."""
        with torch.no_grad():
            return pool_columns(self.block_scores(x_BTE, blocks), blocks.document_of_block_BN, column)


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
    """B x N x r. A block's tokens lie side by side, so this is a reduction over segments: no atomics, so it gives the
    same bits every time, on a GPU as well."""
    sums_SR = torch.segment_reduce(values_PR, "sum", lengths=tokens_BN.flatten(), axis=0, initial=0)
    return sums_SR.view(*tokens_BN.shape, -1) / tokens_BN.clamp(min=1).unsqueeze(-1)

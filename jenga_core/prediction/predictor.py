"""Block scores from small networks (paper, context-aware pattern prediction).

Exact scores need the layer's own queries and keys: its norm, its projections, its adapters, and a product as long as
its heads. A predictor makes thin ones straight from the residual stream, by one network for Q and one for K:

    f(x)      = W3 relu(W2 relu(W1 x / rms(x)))                  three low-rank matrices with ReLU, per token
    I(Q)_h,i  = R_i f_Q(x_i) of head h,  I(K)_h,j = R_j f_K(x_j)    vectors of d coordinates instead of D
    I_mn      = max over i in block m, j in block n of (1/H) sum over h of s relu(I(Q)_h,i . I(K)_h,j)
    I_n       = the columns of I_mn, pooled as those of exact scores are

The last two lines are what exact scores do, so one kernel computes both.

Where we differ from the paper, and why (docs/log.md has the figures):

- Its x is the token's embedding. Ours is the residual stream as it enters the layer, which is what the layer's own
  queries and keys are made from. Outlier channels of it reach 10^4, hence the division by the root mean square.
- It averages a block's tokens into one vector before the product. A block's score is a maximum over pairs of tokens,
  and of a sum of positive parts over heads; a product of averages cannot follow either, and stops at nine tenths of
  recall. We keep tokens and heads apart, and aggregate to blocks after the product.
- Exact scores are taken after RoPE and change with distance, but x knows of no position. R_i turns pairs of coordinates
  at the speeds at which the layer's own rotary embedding does.

Shapes   B batch, T tokens, N blocks, E hidden size, H query heads, K key heads, D head size of the layer, d ours,
         C = d / 2 pairs of coordinates
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from jenga_core.config import Column
from jenga_core.elimination.blocks import Blocks
from jenga_core.elimination.informativeness import block_scores, pool_columns, reach_of_window


class TokenNetwork(nn.Module):
    """f: three matrices with ReLU between, applied to every token alike. Its two hidden sizes may shrink."""

    def __init__(self, hidden_size: int, hidden: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden_size, hidden[0], bias=False)
        self.second = nn.Linear(hidden[0], hidden[1], bias=False)
        self.third = nn.Linear(hidden[1], outputs, bias=False)

    @property
    def hidden(self) -> tuple[int, int]:
        """Neurons after the first and after the second matrix."""
        return self.first.out_features, self.second.out_features

    def forward(self, x_PE: Tensor) -> Tensor:
        """P x outputs."""
        return self.third(self.second(self.first(x_PE).relu()).relu())


class LayerPredictor(nn.Module):
    """Predicted block scores of one layer."""

    speed_KC: Tensor
    """Radians that a pair of coordinates turns by from token to token; query heads turn as their key head does."""

    def __init__(
        self,
        hidden_size: int,
        *,
        query_heads: int,
        key_heads: int,
        head_size: int,
        query_hidden: tuple[int, int],
        key_hidden: tuple[int, int],
        scale: float,
        window_tokens: int | None = None,
    ) -> None:
        """
        Args:
            hidden_size: E.
            query_heads: H, a multiple of
            key_heads: K.
            head_size: d, even.
            scale: s, as the layer multiplies its own products.
            window_tokens: of a layer whose attention slides.
        """
        super().__init__()
        self.query = TokenNetwork(hidden_size, query_hidden, query_heads * head_size)
        self.key = TokenNetwork(hidden_size, key_hidden, key_heads * head_size)
        self.register_buffer("speed_KC", torch.zeros(key_heads, head_size // 2))
        self.query_heads = query_heads
        self.scale = scale
        self.window_tokens = window_tokens

    @property
    def hidden_size(self) -> int:
        """E."""
        return self.query.first.in_features

    @property
    def key_heads(self) -> int:
        """K."""
        return self.speed_KC.shape[0]

    @property
    def head_size(self) -> int:
        """d."""
        return 2 * self.speed_KC.shape[1]

    def queries(self, x_BTE: Tensor, position_T: Tensor) -> Tensor:
        """I(Q), float32 B x H x T x d, of tokens at these positions."""
        speed_HC = self.speed_KC.repeat_interleave(self.query_heads // self.key_heads, dim=0)
        return _turned(self._of_tokens(self.query, x_BTE), position_T, speed_HC)

    def keys(self, x_BTE: Tensor, position_T: Tensor) -> Tensor:
        """I(K), float32 B x K x T x d."""
        return _turned(self._of_tokens(self.key, x_BTE), position_T, self.speed_KC)

    def pair_scores(self, x_BTE: Tensor, blocks: Blocks) -> Tensor:
        """I_mn: float32 B x N (query block) x N (key block), without gradient; 0 where the key block is not seen.

        Args:
            x_BTE: the residual stream as it enters the layer, any float dtype; what lies on padding has no effect.
        """
        with torch.no_grad():
            x_BTE = x_BTE.masked_fill((blocks.block_of_token_BT < 0)[:, :, None], 0)
            position_T = torch.arange(x_BTE.shape[1], device=x_BTE.device)  # distances are all that matters
            q_BHTd, k_BKTd = self.queries(x_BTE, position_T), self.keys(x_BTE, position_T)
            return block_scores(
                q_BHTd.to(x_BTE.dtype),
                k_BKTd.to(x_BTE.dtype),
                blocks,
                scale=self.scale,
                window_tokens=self.window_tokens,
            ).float()

    def pool(self, scores_BNN: Tensor, blocks: Blocks, column: Column, asking_BN: Tensor | None = None) -> Tensor:
        """Scores of block pairs, predicted or exact, to scores of key blocks."""
        return pool_columns(scores_BNN, blocks, column, self.reach_blocks(blocks), asking_BN)

    def scores(self, x_BTE: Tensor, blocks: Blocks, *, column: Column, asking_BN: Tensor | None = None) -> Tensor:
        """I_n: float32 B x N, without gradient; takes the place of `informativeness`."""
        return self.pool(self.pair_scores(x_BTE, blocks), blocks, column, asking_BN)

    def reach_blocks(self, blocks: Blocks) -> int | None:
        """How many blocks back the layer's attention reaches; None: to the first."""
        return reach_of_window(self.window_tokens, blocks.block_tokens)

    @property
    def num_parameters(self) -> int:
        """Weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    @staticmethod
    def _of_tokens(network: TokenNetwork, x_BTE: Tensor) -> Tensor:
        return network(normed(x_BTE).flatten(0, 1)).unflatten(0, x_BTE.shape[:2])


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


def normed(x_BTE: Tensor) -> Tensor:
    """The residual stream in float32, with a root mean square of 1 for every token."""
    x_BTE = x_BTE.float()
    return x_BTE * x_BTE.square().mean(dim=2, keepdim=True).add(1e-6).rsqrt()


def _turned(made_BTF: Tensor, position_T: Tensor, speed_HC: Tensor) -> Tensor:
    """B x H x T x d: R_t applied to the vector of every head; coordinates c and C + c turn together."""
    B, T, _ = made_BTF.shape
    H, C = speed_HC.shape
    u_BHTC, v_BHTC = made_BTF.view(B, T, H, 2, C).permute(3, 0, 2, 1, 4)
    angle_HTC = position_T[:, None].float() * speed_HC[:, None, :]
    cos_HTC, sin_HTC = angle_HTC.cos(), angle_HTC.sin()
    return torch.cat([u_BHTC * cos_HTC - v_BHTC * sin_HTC, u_BHTC * sin_HTC + v_BHTC * cos_HTC], dim=3)

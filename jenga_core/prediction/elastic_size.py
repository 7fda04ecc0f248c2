"""Elastic size: a predictor starts wider than it needs to be, and loses the neurons that turn out to do nothing.

During training every hidden neuron is watched: for which share of the tokens is it zero after its ReLU? Now and then
the deadest are taken out, and the optimizer's moments follow: those of the neurons that stay are kept bit for bit. (A
new matrix that the optimizer has never heard of would not be trained any more.) A neuron that is always zero takes
nothing with it when it goes; one that is nearly always zero takes little, and the training that follows mends it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jenga_core.prediction.predictor import TokenNetwork


class ElasticSize:
    """Watches one network and prunes it. `close()` stops watching."""

    def __init__(
        self,
        network: TokenNetwork,
        optimizer: torch.optim.Optimizer,
        *,
        dead_from_fraction: float = 0.98,
        most_at_once_fraction: float = 0.25,
    ) -> None:
        """
        Args:
            dead_from_fraction: a neuron is dead when it is zero for at least this share of the tokens.
            most_at_once_fraction: of a layer's neurons, `prune` takes at most this share, the deadest.
        """
        self.network = network
        self.optimizer = optimizer
        self.dead_from_fraction = dead_from_fraction
        self.most_at_once_fraction = most_at_once_fraction
        self._watched = (_Watched(network.first), _Watched(network.second))

    def zero_fractions(self) -> tuple[Tensor, Tensor]:
        """Of each neuron after the first and the second matrix, since the last `prune`."""
        return self._watched[0].zero_fraction(), self._watched[1].zero_fraction()

    def prune(self) -> int:
        """Take out the deadest neurons and begin to count anew; return how many went."""
        first, second = self.network.first, self.network.second
        removed = 0
        for watched, makes, reads in zip(self._watched, (first, second), (second, self.network.third), strict=True):
            stays = self._stay(watched.zero_fraction())
            removed += makes.out_features - len(stays)
            if len(stays) < makes.out_features:
                _take(makes, stays, self.optimizer, dim=0)
                _take(reads, stays, self.optimizer, dim=1)
            watched.reset()
        return removed

    def close(self) -> None:
        """Remove the hooks."""
        for watched in self._watched:
            watched.hook.remove()

    def _stay(self, zero_fraction: Tensor) -> Tensor:
        """Ascending indices of the neurons that stay; at least one does."""
        most = min(int(len(zero_fraction) * self.most_at_once_fraction), len(zero_fraction) - 1)
        deadest = zero_fraction.argsort(descending=True, stable=True)[:most]
        goes = torch.zeros_like(zero_fraction, dtype=torch.bool)
        goes[deadest] = zero_fraction[deadest] >= self.dead_from_fraction
        return (~goes).nonzero().flatten()


class _Watched:
    """Counts, per output of a linear layer with a ReLU behind it, the tokens for which that ReLU gives zero."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.hook = linear.register_forward_hook(self._count)
        self.reset()

    def reset(self) -> None:
        self.tokens = 0
        self.zeros = torch.zeros(self.linear.out_features, dtype=torch.long, device=self.linear.weight.device)

    def zero_fraction(self) -> Tensor:
        return self.zeros / max(self.tokens, 1)

    def _count(self, linear: nn.Module, given: Any, made_PF: Tensor) -> None:
        if linear.training:
            self.tokens += made_PF.shape[0]
            self.zeros += (made_PF <= 0).sum(dim=0)


def _take(linear: nn.Linear, indices: Tensor, optimizer: torch.optim.Optimizer, *, dim: int) -> None:
    """Keep these rows (dim 0) or columns (dim 1) of the weight, here and in everything the optimizer knows of it."""
    old = linear.weight
    new = nn.Parameter(old.detach().index_select(dim, indices))
    optimizer.state[new] = {
        name: value.index_select(dim, indices) if isinstance(value, Tensor) and value.shape == old.shape else value
        for name, value in optimizer.state.pop(old, {}).items()
    }
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    linear.weight = new
    linear.out_features, linear.in_features = new.shape

"""MLP elimination: the MLP for the informative rows only (paper, extension of technique 1 to the MLP).

How informative a token is to the MLP shows in its intermediate activations: after ReLU, or silu(gate) * up where the
MLP is gated. A token that hardly activates it gets nothing from it, so y = x for that half layer, and nothing is saved.

    I(T_j) = (1/F) * sum over f of |a_jf|            a: what the down projection is given

Shapes   B batch, G rows, E hidden size, F intermediate size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jenga_core.elimination.selection import Selection
from jenga_core.layers.rows import put_rows, take_rows


@contextmanager
def mlp_of_chosen_rows(
    mlp: nn.Module, down: nn.Module, choose: Callable[[Callable[[], Tensor]], Selection]
) -> Iterator[None]:
    """While the block runs, this MLP computes the rows that `choose` keeps, and gives 0 for the others.

    Args:
        down: its last linear layer, whose input is the intermediate activation.
        choose: from the rows' mean activation, B x G, which is computed if it is asked for, to a selection among them.
    """
    own = mlp.__dict__.get("forward")
    forward = mlp.forward

    def sparse(x_BGE: Tensor) -> Tensor:
        selection = choose(lambda: mean_activation(forward, down, x_BGE))
        y_BKE = forward(take_rows(x_BGE, selection.token_index_BG))
        return put_rows(y_BKE.new_zeros(x_BGE.shape), y_BKE, selection)

    mlp.forward = sparse
    try:
        yield
    finally:
        if own is None:
            del mlp.forward
        else:
            mlp.forward = own


def mean_activation(forward: Callable[[Tensor], Tensor], down: nn.Module, x_BGE: Tensor) -> Tensor:
    """I(T_j) of every row, without gradient; stops before the down projection."""

    def take(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        raise _Taken(arguments[0])

    hook = down.register_forward_pre_hook(take)
    try:
        with torch.no_grad():
            forward(x_BGE)
    except _Taken as taken:
        return taken.activation.abs().float().mean(dim=-1)
    finally:
        hook.remove()
    raise AssertionError(f"the MLP did not call its {type(down).__name__}")


class _Taken(Exception):
    def __init__(self, activation: Tensor) -> None:
        super().__init__()
        self.activation = activation

"""Rows of the residual stream: taken out for the tokens that stay involved, and put back in place.

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jenga_core.elimination.selection import Selection


def take_rows(x_BTx: Tensor, index_BG: Tensor) -> Tensor:
    """x[b, index[b, g]]: B x G x whatever follows T. A leading dimension of 1 serves every sequence."""
    batch = torch.arange(index_BG.shape[0], device=x_BTx.device)[:, None]
    return x_BTx[batch if x_BTx.shape[0] > 1 else torch.zeros_like(batch), index_BG]


def put_rows(x_BTE: Tensor, rows_BGE: Tensor, selection: Selection) -> Tensor:
    """A copy of x with the kept tokens' rows replaced; surplus rows are dropped. Differentiable in both.

    A surplus entry names a token of its own that is not kept, so it can be given what it had: no need to ask a GPU how
    many there are.
    """
    y_BTE: Tensor = _PutRows.apply(x_BTE, rows_BGE, selection.token_index_BG, selection.is_kept_BG)
    return y_BTE


class _PutRows(torch.autograd.Function):
    """Keeps the indices alone; of its parts, autograd would keep x."""

    @staticmethod
    def forward(ctx: Any, x_BTE: Tensor, rows_BGE: Tensor, index_BG: Tensor, is_kept_BG: Tensor) -> Tensor:
        ctx.save_for_backward(index_BG, is_kept_BG)
        return _with_rows(x_BTE, rows_BGE, index_BG, is_kept_BG)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy_BTE,), (index_BG, is_kept_BG) = grad_outputs, ctx.saved_tensors
        dx_BTE = d_rows_BGE = None
        if ctx.needs_input_grad[0]:
            dx_BTE = _with_rows(dy_BTE, torch.zeros_like(take_rows(dy_BTE, index_BG)), index_BG, is_kept_BG)
        if ctx.needs_input_grad[1]:
            d_rows_BGE = take_rows(dy_BTE, index_BG).masked_fill(~_like(is_kept_BG, dy_BTE), 0)
        return dx_BTE, d_rows_BGE, None, None


def _with_rows(x_BTE: Tensor, rows_BGE: Tensor, index_BG: Tensor, is_kept_BG: Tensor) -> Tensor:
    rows_BGE = torch.where(_like(is_kept_BG, x_BTE), rows_BGE, take_rows(x_BTE, index_BG))
    return x_BTE.scatter(1, _like(index_BG, x_BTE).expand_as(rows_BGE), rows_BGE)


def _like(of_row_BG: Tensor, x_BTE: Tensor) -> Tensor:
    return of_row_BG.view(*of_row_BG.shape, *(1,) * (x_BTE.dim() - 2))

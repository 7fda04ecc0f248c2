"""Rows of the residual stream, taken out for a layer and put back where they were, without moving the others.

    rows = ResidualRows(x, selection, in_place=True)
    y = rows.put_back(layer(rows.take()))

Autograd's own way writes the residual stream several times per layer: a copy of x with other rows; in backward the
gradient of that copy with the rows set to zero, a tensor of zeros with the rows' gradients, and their sum. Yet most of
x is y and most of dy is dx:

    y = x  but for  y_r = layer(x)_r          dx = dy  but for  dx_r = (gradient of the rows that were taken)_r

So y is x's memory with rows written over, where that is allowed, and dx is dy's.

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jenga_core.elimination.selection import Selection
from jenga_core.layers.rms_norm import kernels

_LINK = "jenga_link"


class ResidualRows:
    """One round trip of the selected rows; `take` first, then `put_back`, once each."""

    def __init__(self, x_BTE: Tensor, selection: Selection, *, in_place: bool) -> None:
        """
        Args:
            x_BTE: the residual stream.
            selection: the rows. A surplus row is taken, and not put back.
            in_place: x may be overwritten, if autograd allows it: nobody else reads it afterwards, not in backward
                either, as gradient checkpointing would. The result is the same.
        """
        B, T, _ = x_BTE.shape
        first_B1 = torch.arange(B, device=x_BTE.device)[:, None] * T
        index_BG = selection.token_index_BG + first_B1
        self._x_BTE = x_BTE
        self._take_G = index_BG.reshape(-1)
        self._put_G = torch.where(selection.is_kept_BG, index_BG, -1).reshape(-1)
        self._link = _Link(is_needed=x_BTE.requires_grad)
        is_own = x_BTE.is_contiguous() and not x_BTE._is_view() and not (x_BTE.is_leaf and x_BTE.requires_grad)
        self._in_place = in_place and is_own

    def take(self) -> Tensor:
        """The rows, B x G x E."""
        version, before = getattr(self._x_BTE, _LINK, (None, None))
        if before is not None and version == self._x_BTE._version:
            before.is_followed = True
        rows: Tensor = _Take.apply(self._x_BTE, self._take_G, self._put_G, self._link)
        return rows

    def put_back(self, rows_BGE: Tensor) -> Tensor:
        """The residual stream with these rows in place of those that were taken.

        Raises:
            ValueError: x needs a gradient and the rows have none to give it: they were not computed from those taken.
        """
        if self._link.is_needed and torch.is_grad_enabled() and not rows_BGE.requires_grad:
            raise ValueError("the rows must be computed from those that were taken, with gradient; got a constant")
        y_BTE: Tensor = _Put.apply(self._x_BTE, rows_BGE, self._put_G, self._link, self._in_place)
        setattr(y_BTE, _LINK, (y_BTE._version, self._link))
        return y_BTE


class _Link:
    """How the gradient of the rows that stay goes from _Put to _Take, past what happens to the rows."""

    def __init__(self, *, is_needed: bool) -> None:
        self.is_needed = is_needed
        """x needs a gradient."""
        self.is_followed = False
        """y's rows were taken again: then dy is a buffer that came down from that round trip, and is ours."""
        self.d_x_BTE: Tensor | None = None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTE: Tensor, take_G: Tensor, put_G: Tensor, link: _Link) -> Tensor:
        ctx.save_for_backward(put_G)
        ctx.link, ctx.shape = link, x_BTE.shape
        B, _, E = x_BTE.shape
        rows_GE: Tensor = kernels(x_BTE).take_rows(x_BTE.reshape(-1, E), take_G)
        return rows_GE.view(B, take_G.shape[0] // B, E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (d_rows_BGE,) = grad_outputs
        (put_G,) = ctx.saved_tensors
        E = ctx.shape[-1]
        d_x_BTE, ctx.link.d_x_BTE = ctx.link.d_x_BTE, None
        if d_x_BTE is None:  # nobody used what was put back
            d_x_BTE = d_rows_BGE.new_zeros(ctx.shape)
        kernels(d_x_BTE).put_rows(d_x_BTE.view(-1, E), d_rows_BGE.reshape(-1, E), put_G)
        return d_x_BTE, None, None, None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTE: Tensor, rows_BGE: Tensor, put_G: Tensor, link: _Link, in_place: bool) -> Tensor:
        ctx.save_for_backward(put_G)
        ctx.link, ctx.rows_shape = link, rows_BGE.shape
        E = x_BTE.shape[-1]
        if in_place:
            ctx.mark_dirty(x_BTE)
            y_BTE = x_BTE
        else:
            y_BTE = x_BTE.clone(memory_format=torch.contiguous_format)
        kernels(y_BTE).put_rows(y_BTE.view(-1, E), rows_BGE.reshape(-1, E), put_G)
        return y_BTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy_BTE,) = grad_outputs
        (put_G,) = ctx.saved_tensors
        E = dy_BTE.shape[-1]
        if not (ctx.link.is_followed and dy_BTE.is_contiguous()):
            dy_BTE = dy_BTE.clone(memory_format=torch.contiguous_format)
        d_rows_GE: Tensor = kernels(dy_BTE).take_rows(dy_BTE.view(-1, E), put_G)
        if ctx.link.is_needed:
            ctx.link.d_x_BTE = dy_BTE
        return None, d_rows_GE.view(ctx.rows_shape), None, None, None

"""RMSNorm with a frozen weight, as one autograd function that keeps its input and one number per row.

    y = x (mean x^2 + epsilon)^-1/2 (offset + w)

Plain autograd keeps float32 copies of x and of what is between. Here backward norms x again, which the residual stream
keeps anyway. The output remembers where it came from (`origin_of`): a function that would keep y for its own backward
keeps x instead, and norms it again.

Shapes   ... x E the input, R rows, E hidden size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jenga_kernels import reference
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight_E: Tensor, *, epsilon: float, offset: float = 0.0) -> Tensor:
    """y, of x's shape and dtype, differentiable in x.

    Args:
        x: ... x E, any float dtype.
        weight_E: frozen, any float dtype.
        offset: added to the weight; Gemma's norms have 1.

    Raises:
        ValueError: the weight is trained, or not as wide as x.
    """
    if weight_E.requires_grad:
        raise ValueError("the norm's weight must be frozen: it gets no gradient here")
    if weight_E.shape != x.shape[-1:]:
        raise ValueError(f"x is {x.shape[-1]} wide, the weight has shape {tuple(weight_E.shape)}")
    y: Tensor = _RMSNorm.apply(x, weight_E, epsilon, offset)
    if y.requires_grad:
        setattr(y, _ORIGIN, (y._version, Normed(x, Norm(weight_E, epsilon, offset))))
    return y


_ORIGIN = "jenga_origin"


@dataclass(frozen=True)
class Norm:
    """The constants of a norm."""

    weight_E: Tensor
    epsilon: float
    offset: float

    def of(self, x: Tensor) -> Tensor:
        """The normed x, without gradient; to the last bit what `rms_norm` made of it."""
        y_RE, _ = kernels(x).rms_norm(_rows(x), self.weight_E, epsilon=self.epsilon, offset=self.offset)
        y: Tensor = y_RE.view(x.shape)
        return y


@dataclass(frozen=True)
class Normed:
    """How an output of `rms_norm` was made."""

    x: Tensor
    norm: Norm


def origin_of(y: Tensor) -> Normed | None:
    """How y was made, if `rms_norm` made it and nobody has changed it since."""
    version, origin = getattr(y, _ORIGIN, (None, None))
    return origin if version == y._version else None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_E: Tensor, epsilon: float, offset: float) -> Tensor:
        y_RE, rstd_R = kernels(x).rms_norm(_rows(x), weight_E, epsilon=epsilon, offset=offset)
        ctx.save_for_backward(x, weight_E, rstd_R)
        ctx.offset = offset
        return y_RE.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_E, rstd_R = ctx.saved_tensors
        (dy,) = grad_outputs
        dx_RE = kernels(x).rms_norm_backward(_rows(dy), _rows(x), weight_E, rstd_R, offset=ctx.offset)
        return dx_RE.view(x.shape), None, None, None


def kernels(x: Tensor) -> Any:
    """The Triton kernels that move rows, on a GPU; else their twins."""
    if x.is_cuda:
        from jenga_kernels import rows

        if rows.supports(x.shape[-1], x.dtype):
            return rows
    return reference


def _rows(x: Tensor) -> Tensor:
    """As R x E with neighbouring entries."""
    x_RE = x.reshape(-1, x.shape[-1])
    return x_RE if x_RE.stride(1) == 1 else x_RE.contiguous()

"""A frozen linear layer with the ReLU behind it: OPT's first half of the MLP, in one pass over its wide output.

    a = relu(x W^T + b)          dx = (da where a > 0) W

The bias and the ReLU are the epilogue of the matrix product. What is kept is a, which ReLU keeps as well.

Shapes   ... x E the input, ... x F the output
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def relu_linear(x: Tensor, weight_FE: Tensor, bias_F: Tensor | None) -> Tensor:
    """a, of x's dtype, differentiable in x.

    Raises:
        ValueError: the weight or the bias is trained, or of another dtype than x.
    """
    for constant in (weight_FE, bias_F):
        if constant is not None and constant.requires_grad:
            raise ValueError("the weight and the bias must be frozen: they get no gradient here")
        if constant is not None and constant.dtype != x.dtype:
            raise ValueError(f"x is {x.dtype} and a weight {constant.dtype}; both must agree")
    a: Tensor = _ReLULinear.apply(x, weight_FE, bias_F)
    setattr(a, _IS_RELU, a._version)
    return a


_IS_RELU = "jenga_is_relu"


def is_relu(a: Tensor) -> bool:
    """Whether `relu_linear` made it and nobody has changed it since, so that another ReLU would not."""
    return getattr(a, _IS_RELU, None) == a._version


class _ReLULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_FE: Tensor, bias_F: Tensor | None) -> Tensor:
        x_ME = x.reshape(-1, x.shape[-1])
        bias_F = x.new_zeros(weight_FE.shape[0]) if bias_F is None else bias_F
        a_MF = torch._addmm_activation(bias_F, x_ME, weight_FE.T)
        a = a_MF.view(*x.shape[:-1], a_MF.shape[-1])
        ctx.save_for_backward(a, weight_FE)
        return a

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        a, weight_FE = ctx.saved_tensors
        (da,) = grad_outputs
        return torch.ops.aten.threshold_backward(da, a, 0) @ weight_FE, None, None

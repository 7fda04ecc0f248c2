"""Rotary position embedding of queries and keys, as one autograd function that keeps the angles and nothing else.

Plain autograd keeps nothing large either, but makes five tensors as large as the queries on the way; here it is one.

Shapes   B batch, H query heads, K key/value heads, T tokens, D head size
"""

from __future__ import annotations

from typing import Any

import torch
from jenga_kernels import reference
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotary(q_BHTD: Tensor, k_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by the angles of their positions, differentiable in both.

    Args:
        cos_BTD, sin_BTD: of every entry's angle; a batch of 1 serves every sequence.

    Raises:
        ValueError: angles that are not as wide as a head.
    """
    if cos_BTD.shape[-1] != q_BHTD.shape[-1]:
        raise ValueError(f"angles are {cos_BTD.shape[-1]} wide and heads {q_BHTD.shape[-1]}; both must agree")
    turned: tuple[Tensor, Tensor] = _Rotary.apply(q_BHTD, k_BKTD, cos_BTD, sin_BTD)
    return turned


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.set_materialize_grads(False)
        return _turn(q, cos, sin), _turn(k, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        dq, dk = (None if dy is None else _turn(dy, cos, sin, transposed=True) for dy in grad_outputs)
        return dq, dk, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, transposed: bool = False) -> Tensor:
    if x.is_cuda:
        from jenga_kernels import rotary as kernel

        if kernel.supports(x.shape[-1], x.dtype):
            return kernel.rotary(x, cos, sin, transposed=transposed)
    return reference.rotary(x, cos, sin, transposed=transposed)

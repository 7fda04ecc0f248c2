"""Frozen linear layers with low-rank adapters (Hu et al. 2021): those that share an input are one autograd function.

    p = x A^T            y = x W^T + b + s p B^T
    dp = s dy B          dx = dy W + dp A          dA = dp^T x          dB = s dy^T p

What backward needs is p, r wide, and x, which q, k and v share; where x is the output of a norm, what was normed is
kept in its place and normed again. peft's own layer casts x to the adapter's float32 first, so each adapter stores a
copy of its own, twice as large. Here A and B are cast to the dtype of x instead; updates are accumulated into y, and
the gradients of all the layers into one dx, in place by the matrix products. The adapter's gradients come out in its
own dtype. W and b are constants.

Shapes   ... x I the input, ... x O the output, M rows, r rank, R rank of all adapters together
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from jenga_core.layers.rms_norm import Normed, origin_of


@dataclass(frozen=True)
class Adapter:
    """A trained low-rank update, in any float dtype."""

    a_rI: Tensor
    b_Or: Tensor
    scale: float
    """Of the update, alpha / r."""


@dataclass(frozen=True)
class Projection:
    """A linear layer whose own weights are frozen."""

    weight_OI: Tensor
    bias_O: Tensor | None
    adapter: Adapter | None


class Casts:
    """Adapters' matrices in another dtype, cast once a step and not at each of their uses."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[list[Tensor], Tensor]] = {}

    def begin_step(self) -> None:
        """Forget them: the adapters may have been trained since. What autograd does not see, a write into `.data`,
        must wait for the next call."""
        self._made = {}

    def of(self, matrices: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
        """Those that are there, one below the other; None if there is none."""
        given = [matrix for matrix in matrices if matrix is not None]
        if not given:
            return None
        key = (dtype, *((id(matrix), matrix._version) for matrix in given))
        if key not in self._made:
            cast = torch.cat([matrix.to(dtype) for matrix in given]) if len(given) > 1 else given[0].to(dtype)
            self._made[key] = given, cast  # kept together, so that the ids stay their own
        return self._made[key][1]


def lora_linear(x: Tensor, projection: Projection, casts: Casts | None = None) -> Tensor:
    """The output of one layer; see `lora_linears`."""
    return lora_linears(x, [projection], casts)[0]


def lora_linears(x: Tensor, projections: Sequence[Projection], casts: Casts | None = None) -> tuple[Tensor, ...]:
    """The output of every layer, of x's dtype, differentiable in x, A and B.

    Args:
        casts: shared by the calls of a step; None: by the forward and the backward of this one.

    Raises:
        ValueError: x and a weight differ in dtype, or a weight or bias is trained.
    """
    tensors: list[Tensor | None] = []
    scales = []
    for projection in projections:
        weight_OI, bias_O, adapter = projection.weight_OI, projection.bias_O, projection.adapter
        if x.dtype != weight_OI.dtype:
            raise ValueError(f"x is {x.dtype} and the weight {weight_OI.dtype}; both must agree")
        if weight_OI.requires_grad or (bias_O is not None and bias_O.requires_grad):
            raise ValueError("the weight and the bias must be frozen: they get no gradient here")
        tensors += [weight_OI, bias_O, *((None, None) if adapter is None else (adapter.a_rI, adapter.b_Or))]
        scales.append(0.0 if adapter is None else adapter.scale)
    outputs: tuple[Tensor, ...] = _LoraLinears.apply(x, origin_of(x), scales, casts or Casts(), *tensors)
    return outputs


_FIRST = 4
"""Where the layers' tensors begin among the arguments of `_LoraLinears`."""


class _LoraLinears(torch.autograd.Function):
    """Arguments: x, its origin, the scales, the casts, and four tensors per layer: weight, bias, A, B.

    The adapters' A lie in one matrix, so that x is read once for all p, and once for all dA.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, origin: Normed | None, scales: list[float], casts: Casts, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases, down, up = tensors[0::4], tensors[1::4], tensors[2::4], tensors[3::4]
        x_MI = x.reshape(-1, x.shape[-1])
        a_RI = casts.of(down, x.dtype)
        p_MR = None if a_RI is None else x_MI @ a_RI.T
        outputs: list[Tensor] = []
        for weight_OI, bias_O, b_Or, scale, part in zip(weights, biases, up, scales, _parts(down), strict=True):
            assert weight_OI is not None
            y_MO = F.linear(x_MI, weight_OI, bias_O)
            b_cast_Or = casts.of([b_Or], x.dtype)
            if p_MR is not None and b_cast_Or is not None:
                y_MO.addmm_(p_MR[:, part], b_cast_Or.T, alpha=scale)
            outputs.append(y_MO.view(*x.shape[:-1], y_MO.shape[-1]))
        trains_an_adapter = any(ctx.needs_input_grad[_FIRST:])
        source = x if origin is None else origin.x
        ctx.save_for_backward(source if trains_an_adapter else None, p_MR, *weights, *down, *up)
        ctx.norm = None if origin is None else origin.norm
        ctx.scales, ctx.casts, ctx.shape, ctx.dtype = scales, casts, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        source, p_MR, *tensors = ctx.saved_tensors
        count = len(ctx.scales)
        weights, down, up = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        dp_MR: Any = None if p_MR is None else torch.zeros_like(p_MR)
        dx_MI: Tensor | None = None
        d_up: list[Tensor | None] = []
        for i, (dy, weight_OI, b_Or, part) in enumerate(zip(grad_outputs, weights, up, _parts(down), strict=True)):
            db_Or = None
            if dy is not None:
                dy_MO = dy.reshape(-1, dy.shape[-1])
                if ctx.needs_input_grad[0]:
                    dx_MI = dy_MO @ weight_OI if dx_MI is None else dx_MI.addmm_(dy_MO, weight_OI)
                if b_Or is not None:
                    dp_MR[:, part].addmm_(dy_MO, ctx.casts.of([b_Or], ctx.dtype), alpha=ctx.scales[i])
                    if ctx.needs_input_grad[_FIRST + 4 * i + 3]:
                        db_Or = _product(dy_MO.T, p_MR[:, part], b_Or.dtype).mul_(ctx.scales[i])
            d_up.append(db_Or)
        a_RI = ctx.casts.of(down, ctx.dtype)
        if dx_MI is not None and a_RI is not None:
            dx_MI.addmm_(dp_MR, a_RI)
        d_down: list[Tensor | None] = [None] * count
        if source is not None:
            x = source if ctx.norm is None else ctx.norm.of(source)
            da_RI = _product(dp_MR.T, x.reshape(-1, x.shape[-1]), torch.promote_types(ctx.dtype, torch.float32))
            for i, (a_rI, part) in enumerate(zip(down, _parts(down), strict=True)):
                if ctx.needs_input_grad[_FIRST + 4 * i + 2]:
                    d_down[i] = da_RI[part].to(a_rI.dtype)
        d_tensors = [each for i in range(count) for each in (None, None, d_down[i], d_up[i])]
        return None if dx_MI is None else dx_MI.view(ctx.shape), *(None,) * (_FIRST - 1), *d_tensors


def _parts(down: Sequence[Tensor | None]) -> list[slice]:
    """Where each layer's rank lies in that of all."""
    ends = list(accumulate(0 if a_rI is None else a_rI.shape[0] for a_rI in down))
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right in another dtype, from the float32 sums where the device gives them."""
    if left.is_cuda and dtype == torch.float32 and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)

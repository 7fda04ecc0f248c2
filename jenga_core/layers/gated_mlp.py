"""A frozen gated MLP as one autograd function that keeps no more than gate and up, or nothing at all.

    g = x Wg^T          u = x Wu^T          h = act(g) u          y = h Wd^T
    dh = dy Wd          dg = dh u act'(g)          du = dh act(g)          dx = dg Wg + du Wu

The weights are constants, so backward needs neither h nor y. Plain autograd keeps g, act(g), u and h; here g and u are
kept, and dg and du overwrite them. With `recompute` backward makes g and u again from x; where x is the output of a
norm, what was normed is kept in its place, which the residual stream keeps anyway. Rows go through in chunks wherever a
tensor F wide need not outlive them.

Where a layer is replayed for its backward, its output is known. Inside `output_unused()` an MLP whose output goes
nowhere but into the residual stream computes nothing in forward: it returns zeros that stand for its output, and
backward, which does not need the output, makes g and u.

Shapes   ... x E the input, M rows, C rows of a chunk, E hidden size, F intermediate size
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jenga_kernels import reference
from torch import Tensor
from torch.autograd.function import once_differentiable

from jenga_core.layers.rms_norm import Normed, origin_of

CHUNK_ROWS = 2048
"""Rows that pass through the MLP at once: enough for matrix products at full rate, and few enough that the three
tensors of intermediate size stay below 0.2 GiB for Llama-3-8B, at any length."""


_OUTPUT_IS_UNUSED = ContextVar("output_is_unused", default=False)  # of a thread: backward runs in one for each device


@contextmanager
def output_unused() -> Iterator[None]:
    """While the block runs, gated MLPs that end a layer return zeros for their output; gradients are those of the
    output."""
    before = _OUTPUT_IS_UNUSED.set(True)
    try:
        yield
    finally:
        _OUTPUT_IS_UNUSED.reset(before)


def output_is_unused() -> bool:
    """Whether it does."""
    return _OUTPUT_IS_UNUSED.get()


def gated_mlp(
    x: Tensor,
    gate_FE: Tensor,
    up_FE: Tensor,
    down_EF: Tensor,
    *,
    activation: str,
    recompute: bool = False,
    ends_layer: bool = True,
) -> Tensor:
    """y, of x's shape and dtype, differentiable in x.

    Args:
        x: ... x E.
        gate_FE, up_FE, down_EF: frozen weights, of x's dtype.
        activation: 'silu' or 'gelu_tanh'.
        recompute: keep nothing but x for backward; costs the first two products once more.
        ends_layer: the output is added to the residual stream as it is, so it may be left out in `output_unused`;
            False where a norm follows, whose gradient depends on it.

    Raises:
        ValueError: x and the weights differ in dtype, or a weight is trained.
    """
    weights = (gate_FE, up_FE, down_EF)
    if any(weight.dtype != x.dtype for weight in weights):
        raise ValueError(f"x is {x.dtype} and the weights {[weight.dtype for weight in weights]}; all must agree")
    if any(weight.requires_grad for weight in weights):
        raise ValueError("the MLP's weights must be frozen: they get no gradient here")
    is_unused = output_is_unused() and ends_layer
    if x.requires_grad and torch.is_grad_enabled():
        recompute = recompute or is_unused
        y: Tensor = _GatedMLP.apply(x, *weights, origin_of(x), activation, recompute, is_unused)
        return y
    return _unknown(x) if is_unused else _output(x, *weights, activation)


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_FE: Tensor,
        up_FE: Tensor,
        down_EF: Tensor,
        origin: Normed | None,
        activation: str,
        recompute: bool,
        is_output_unused: bool,
    ) -> Tensor:
        ctx.activation, ctx.shape = activation, x.shape
        if recompute:
            ctx.norm = None if origin is None else origin.norm
            ctx.save_for_backward(x if origin is None else origin.x, gate_FE, up_FE, down_EF, None, None)
            return _unknown(x) if is_output_unused else _output(x, gate_FE, up_FE, down_EF, activation)
        x_ME = x.reshape(-1, x.shape[-1])
        gate_MF, up_MF = x_ME @ gate_FE.T, x_ME @ up_FE.T
        y_ME = torch.empty_like(x_ME)
        for chunk in chunks(x_ME.shape[0]):
            h_CF = _activate(gate_MF[chunk], up_MF[chunk], activation)
            torch.mm(h_CF, down_EF.T, out=y_ME[chunk])
        ctx.save_for_backward(None, gate_FE, up_FE, down_EF, gate_MF, up_MF)
        return y_ME.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        source, gate_FE, up_FE, down_EF, gate_MF, up_MF = ctx.saved_tensors
        (dy,) = grad_outputs
        dy_ME = dy.reshape(-1, dy.shape[-1])
        if source is not None:
            x = source if ctx.norm is None else ctx.norm.of(source)
            x_ME = x.reshape(-1, x.shape[-1])
        dx_ME = torch.empty_like(dy_ME, memory_format=torch.contiguous_format)
        for chunk in chunks(dy_ME.shape[0]):
            if source is not None:
                gate_CF, up_CF = x_ME[chunk] @ gate_FE.T, x_ME[chunk] @ up_FE.T
            else:
                gate_CF, up_CF = gate_MF[chunk], up_MF[chunk]
            _activate_backward(dy_ME[chunk] @ down_EF, gate_CF, up_CF, ctx.activation)
            torch.mm(gate_CF, gate_FE, out=dx_ME[chunk]).addmm_(up_CF, up_FE)
        if gate_MF is not None:  # a second backward of the same graph is then refused by autograd, not wrong
            torch.autograd.graph.increment_version([gate_MF, up_MF])
        return dx_ME.view(ctx.shape), None, None, None, None, None, None, None


def _output(x: Tensor, gate_FE: Tensor, up_FE: Tensor, down_EF: Tensor, activation: str) -> Tensor:
    x_ME = x.reshape(-1, x.shape[-1])
    y_ME = torch.empty_like(x_ME, memory_format=torch.contiguous_format)
    for chunk in chunks(x_ME.shape[0]):
        gate_CF = x_ME[chunk] @ gate_FE.T
        h_CF = _activate(gate_CF, x_ME[chunk] @ up_FE.T, activation, out_SF=gate_CF)
        torch.mm(h_CF, down_EF.T, out=y_ME[chunk])
    return y_ME.view(x.shape)


def _unknown(x: Tensor) -> Tensor:
    return x.new_zeros(()).expand(x.shape)


def chunks(rows: int) -> Iterator[slice]:
    """Even parts of at most CHUNK_ROWS rows, each but the last a multiple of 128, which products of matrices like."""
    if rows == 0:
        return
    count = -(-rows // CHUNK_ROWS)
    size = -(-rows // (count * 128)) * 128
    yield from (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _activate(gate_SF: Tensor, up_SF: Tensor, activation: str, out_SF: Tensor | None = None) -> Tensor:
    return _kernels(gate_SF, activation).gated_activation(gate_SF, up_SF, activation=activation, out_SF=out_SF)


def _activate_backward(d_h_SF: Tensor, gate_SF: Tensor, up_SF: Tensor, activation: str) -> None:
    _kernels(gate_SF, activation).gated_activation_backward(d_h_SF, gate_SF, up_SF, activation=activation)


def _kernels(tensor: Tensor, activation: str) -> Any:
    """The Triton kernels on a GPU, else their twins."""
    if tensor.is_cuda:
        from jenga_kernels import gated_activation

        if gated_activation.supports(tensor.dtype, activation):
            return gated_activation
    return reference

"""The activation of a gated MLP in Triton: act(gate) * up, and its backward in the memory of gate and up.

    h = act(g) u          dg = dh u act'(g)          du = dh act(g)

    silu         act(g) = g s,   s = sigmoid(g)          act'(g) = s (1 + g (1 - s))
    gelu_tanh    act(g) = g (1 + t) / 2,   t = tanh(c (g + a g^3)),   c = sqrt(2 / pi),   a = 0.044715
                 act'(g) = (1 + t) / 2 + g (1 - t^2) c (1 + 3 a g^2) / 2

Twins: `jenga_kernels.reference.gated_activation` and `gated_activation_backward`.

Each entry is read once and written once, in float32 between. Backward writes dg over g and du over u: the products that
follow read them there, and no third tensor as wide as the MLP exists.

Shapes   S rows, F intermediate size
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ACTIVATIONS = ("silu", "gelu_tanh")

_TILE = 2048


def supports(dtype: torch.dtype, activation: str) -> bool:
    """Whether the kernels compute this: bf16, fp16 or fp32; an activation of ACTIVATIONS."""
    return dtype in (torch.bfloat16, torch.float16, torch.float32) and activation in ACTIVATIONS


def gated_activation(gate_SF: Tensor, up_SF: Tensor, *, activation: str, out_SF: Tensor | None = None) -> Tensor:
    """act(gate) * up, into `out_SF` (which may be gate or up itself) or a new tensor.

    Args:
        gate_SF, up_SF: rows may be any distance apart, entries of a row must be neighbours.

    Raises:
        ValueError: for an activation, dtype, shape or stride that is not as above.
    """
    out_SF = torch.empty_like(gate_SF, memory_format=torch.contiguous_format) if out_SF is None else out_SF
    _check(activation, gate_SF, up_SF, out_SF)
    S, F = gate_SF.shape
    if gate_SF.numel():
        _forward[(S, triton.cdiv(F, _TILE))](
            gate_SF, up_SF, out_SF, gate_SF.stride(0), up_SF.stride(0), out_SF.stride(0), F, activation, _TILE
        )
    return out_SF


def gated_activation_backward(d_h_SF: Tensor, gate_SF: Tensor, up_SF: Tensor, *, activation: str) -> None:
    """The gradients of gate and up, written over gate and up. Arguments and errors as for the forward."""
    _check(activation, gate_SF, up_SF, d_h_SF)
    S, F = gate_SF.shape
    if gate_SF.numel():
        _backward[(S, triton.cdiv(F, _TILE))](
            d_h_SF, gate_SF, up_SF, d_h_SF.stride(0), gate_SF.stride(0), up_SF.stride(0), F, activation, _TILE
        )


def _check(activation: str, gate_SF: Tensor, *others: Tensor) -> None:
    if not supports(gate_SF.dtype, activation):
        raise ValueError(
            f"{activation!r} of {gate_SF.dtype} is not supported; give one of {', '.join(ACTIVATIONS)} and bf16, fp16 "
            "or fp32"
        )
    for other in others:
        if other.shape != gate_SF.shape or other.dtype != gate_SF.dtype:
            raise ValueError(
                f"tensors must agree in shape and dtype, got {tuple(gate_SF.shape)} of {gate_SF.dtype} and "
                f"{tuple(other.shape)} of {other.dtype}"
            )
    for tensor in (gate_SF, *others):
        if tensor.dim() != 2 or (tensor.shape[1] > 1 and tensor.stride(1) != 1):
            raise ValueError(
                f"two dimensions with neighbouring entries are needed, got shape {tuple(tensor.shape)} and strides "
                f"{tensor.stride()}; call contiguous()"
            )


@triton.jit
def _forward(
    gate_ptr,
    up_ptr,
    out_ptr,
    gate_stride,
    up_stride,
    out_stride,
    width,
    ACTIVATION: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = entry < width
    g = tl.load(gate_ptr + row * gate_stride + entry, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_stride + entry, mask=mask, other=0.0).to(tl.float32)
    activated, _ = _activation_and_slope(g, ACTIVATION)
    tl.store(out_ptr + row * out_stride + entry, activated * u, mask=mask)


@triton.jit
def _backward(
    d_h_ptr,
    gate_ptr,
    up_ptr,
    d_h_stride,
    gate_stride,
    up_stride,
    width,
    ACTIVATION: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = entry < width
    d_h = tl.load(d_h_ptr + row * d_h_stride + entry, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gate_ptr + row * gate_stride + entry, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_stride + entry, mask=mask, other=0.0).to(tl.float32)
    activated, slope = _activation_and_slope(g, ACTIVATION)
    tl.store(gate_ptr + row * gate_stride + entry, d_h * u * slope, mask=mask)
    tl.store(up_ptr + row * up_stride + entry, d_h * activated, mask=mask)


@triton.jit
def _activation_and_slope(g, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        s = _sigmoid(g)
        activated = g * s
        slope = s * (1.0 + g * (1.0 - s))
    else:
        C: tl.constexpr = 0.7978845608028654  # sqrt(2 / pi)
        A: tl.constexpr = 0.044715
        half = _sigmoid(2.0 * C * (g + A * g * g * g))  # (1 + tanh x) / 2 = sigmoid(2 x)
        activated = g * half
        slope = half + 2.0 * g * half * (1.0 - half) * C * (1.0 + 3.0 * A * g * g)
    return activated, slope


@triton.jit
def _sigmoid(x):
    shrunk = tl.exp(-tl.abs(x))  # at most 1: exp(-x) would overflow
    return tl.where(x < 0, shrunk, 1.0) / (1.0 + shrunk)

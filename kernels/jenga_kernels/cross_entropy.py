"""Cross entropy in Triton: logits in, losses out, and the logits' memory left holding their gradient.

    loss_r = log sum_v exp(z_rv) - z_r,target(r)          d loss_r / d z_rv = softmax(z_r)_v - [v = target(r)]

With a soft cap c, z = c tanh(logit / c), and the gradient is multiplied by the slope 1 - (z / c)^2.

Twin: `jenga_kernels.reference.cross_entropy`.

One program owns one row and reads it twice: forwards for an online softmax, then backwards, so that what was read last
is still in registers or in the L2 cache, writing the gradient over the logits. With a program of 32 warps a
multiprocessor holds one row at a time, and the rows in flight (132 x 250 KB for V = 128K in bf16) fit an H100's L2: of
three passes over the row little more than two reach device memory. Each thread keeps its own running maximum over 8
neighbours at a time, so an exponential is spent per entry and not two, and warps meet once per row.

Shapes   S rows of a segment, V vocabulary
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_TILE = 16384
"""Entries of a row that are in registers at once."""


def supports(dtype: torch.dtype) -> bool:
    """Whether the kernel computes this: bf16, fp16 or fp32."""
    return dtype in (torch.bfloat16, torch.float16, torch.float32)


def cross_entropy(
    logits_SV: Tensor, target_S: Tensor, *, softcap: float | None = None, with_gradient: bool = True
) -> Tensor:
    """Losses in nats, float32 S; the logits become their gradient in place.

    Args:
        logits_SV: bf16, fp16 or fp32; rows may be any distance apart, entries of a row must be neighbours.
        target_S: int64, each in 0 .. V - 1. The loss of a row whose target is not is NaN.
        softcap: bound on the logits; None leaves them as they are.
        with_gradient: False leaves the logits as they are.

    Raises:
        ValueError: for a dtype, shape or stride that is not as above.
    """
    S, V = logits_SV.shape
    if not supports(logits_SV.dtype):
        raise ValueError(f"logits must be bf16, fp16 or fp32, got {logits_SV.dtype}; convert them")
    if V > 1 and logits_SV.stride(1) != 1:
        raise ValueError(f"entries of a row must be neighbours, got strides {logits_SV.stride()}; call contiguous()")
    if target_S.shape != (S,) or target_S.dtype != torch.int64:
        raise ValueError(f"{S} int64 targets are needed, got {target_S.dtype} of shape {tuple(target_S.shape)}")
    loss_S = logits_SV.new_empty(S, dtype=torch.float32)
    if S == 0:
        return loss_S
    tile = min(triton.next_power_of_2(V), LARGEST_TILE)
    _loss_and_gradient[(S,)](
        logits_SV,
        logits_SV.stride(0),
        target_S.contiguous(),
        loss_S,
        V,
        0.0 if softcap is None else softcap,
        HAS_SOFTCAP=softcap is not None,
        WITH_GRADIENT=with_gradient,
        FULL_TILES=(V - 1) // tile,
        GROUPS=max(tile // 8, 1),
        GROUP=min(tile, 8),
        num_warps=max(min(tile // 512, 32), 1),
    )
    return loss_S


@triton.jit
def _loss_and_gradient(
    logits_ptr,
    row_stride,
    target_ptr,
    loss_ptr,
    vocabulary,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    FULL_TILES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    target = tl.load(target_ptr + row)
    is_known = (target >= 0) & (target < vocabulary)
    wanted = tl.load(logits_ptr + target, mask=is_known, other=float("nan")).to(tl.float32)
    if HAS_SOFTCAP:
        wanted = _soft_capped(wanted, softcap)
    TILE: tl.constexpr = GROUPS * GROUP
    tile_ptr = logits_ptr + tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    last_ptr = tile_ptr + FULL_TILES * TILE
    in_last = FULL_TILES * TILE + tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :] < vocabulary

    # The next tile is on its way while this one is summed up. The last two stay in registers for the gradient.
    last = tl.load(last_ptr, mask=in_last, other=float("-inf"))
    # Finite, so that a group beyond the vocabulary is exp(-inf - low) = 0 and not NaN.
    running_max = tl.full((GROUPS,), -1e30, dtype=tl.float32)
    running_sum = tl.zeros((GROUPS,), dtype=tl.float32)
    if FULL_TILES > 0:
        tile = tl.load(tile_ptr)
        for i in range(1, FULL_TILES):
            ahead = tl.load(tile_ptr + i * TILE)
            running_max, running_sum = _added(tile, running_max, running_sum, softcap, HAS_SOFTCAP)
            tile = ahead
        running_max, running_sum = _added(tile, running_max, running_sum, softcap, HAS_SOFTCAP)
    last_z = last.to(tl.float32)
    if HAS_SOFTCAP:
        last_z = tl.where(in_last, _soft_capped(last_z, softcap), float("-inf"))
    running_max, running_sum = _added(last_z, running_max, running_sum, softcap, False)
    row_max = tl.max(running_max, axis=0)
    log_sum = tl.log(tl.sum(running_sum * tl.exp(running_max - row_max), axis=0))
    tl.store(loss_ptr + row, row_max - wanted + log_sum)

    if WITH_GRADIENT:
        tl.store(last_ptr, _gradient(last, row_max, log_sum, softcap, HAS_SOFTCAP), mask=in_last)
        if FULL_TILES > 0:
            for backwards in range(1, FULL_TILES):
                i = FULL_TILES - 1 - backwards
                ahead = tl.load(tile_ptr + i * TILE)
                tl.store(tile_ptr + (i + 1) * TILE, _gradient(tile, row_max, log_sum, softcap, HAS_SOFTCAP))
                tile = ahead
            tl.store(tile_ptr, _gradient(tile, row_max, log_sum, softcap, HAS_SOFTCAP))
        tl.debug_barrier()  # the target's entry was just written by another thread
        p = tl.exp(wanted - row_max - log_sum)
        gradient = p - 1.0
        if HAS_SOFTCAP:
            gradient *= 1.0 - (wanted / softcap) * (wanted / softcap)
        tl.store(logits_ptr + target, gradient, mask=is_known)


@triton.jit
def _added(tile, running_max, running_sum, softcap, HAS_SOFTCAP: tl.constexpr):
    z = tile.to(tl.float32)
    if HAS_SOFTCAP:
        z = _soft_capped(z, softcap)
    new_max = tl.maximum(running_max, tl.max(z, axis=1))
    new_sum = running_sum * tl.exp(running_max - new_max) + tl.sum(tl.exp(z - new_max[:, None]), axis=1)
    return new_max, new_sum


@triton.jit
def _gradient(tile, row_max, log_sum, softcap, HAS_SOFTCAP: tl.constexpr):
    """Softmax times the cap's slope; of the target, 1 is still to be taken off."""
    z = tile.to(tl.float32)
    if HAS_SOFTCAP:
        z = _soft_capped(z, softcap)
    gradient = tl.exp(z - row_max - log_sum)
    if HAS_SOFTCAP:
        gradient *= 1.0 - (z / softcap) * (z / softcap)
    return gradient


@triton.jit
def _soft_capped(z, softcap):
    # tanh by exp(-2|x|), which neither overflows nor needs a device library
    x = z / softcap
    shrunk = tl.exp(-2.0 * tl.abs(x))
    tanh = (1.0 - shrunk) / (1.0 + shrunk)
    return softcap * tl.where(x < 0, -tanh, tanh)

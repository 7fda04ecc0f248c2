"""Rotary position embedding in Triton: pairs of entries turned by the angle of their position (Su et al. 2021).

    (a, b) -> (a cos - b sin, b cos + a sin)          a in the first half of a head, b its partner in the second

The gradient is turned back: the transpose of a rotation, (a, b) -> (a cos + b sin, b cos - a sin).

Twin: `jenga_kernels.reference.rotary`.

A program turns the heads of a token, so that angles are read once and not once per head; entries are read once,
turned in float32 and written once, in the layout they came in.

Shapes   B batch, H heads, T tokens, D head size
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # pairs of entries that a program turns


def supports(head_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernel computes this: an even head size up to 512; bf16, fp16 or fp32."""
    return head_size % 2 == 0 and head_size <= 512 and dtype in (torch.bfloat16, torch.float16, torch.float32)


def rotary(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, *, transposed: bool = False) -> Tensor:
    """The turned heads, with the strides of x where x is dense.

    Args:
        x_BHTD: queries or keys, any strides.
        cos_BTD, sin_BTD: of every entry's angle, any float dtype; a batch of 1 serves every sequence.
        transposed: turn by the negative angle, as the gradient needs.

    Raises:
        ValueError: for a size or dtype that `supports` refuses, or angles that do not fit x.
    """
    B, H, T, D = x_BHTD.shape
    if not supports(D, x_BHTD.dtype):
        raise ValueError(
            f"head size {D} of {x_BHTD.dtype} is not supported; give an even one up to 512, in bf16, fp16 or fp32"
        )
    if cos_BTD.shape != sin_BTD.shape or cos_BTD.shape[1:] != (T, D) or cos_BTD.shape[0] not in (1, B):
        raise ValueError(
            f"angles must be 1 or {B} x {T} x {D}, got cos {tuple(cos_BTD.shape)} and sin {tuple(sin_BTD.shape)}"
        )
    cos_BTD, sin_BTD = cos_BTD.expand(B, T, D), sin_BTD.expand(B, T, D)
    y_BHTD = torch.empty_like(x_BHTD)
    if x_BHTD.numel() == 0:
        return y_BHTD
    heads, half = triton.next_power_of_2(H), triton.next_power_of_2(D // 2)
    heads_per_program = min(heads, max(_TILE // half, 1))
    _turn[(T, triton.cdiv(H, heads_per_program), B)](
        x_BHTD, cos_BTD, sin_BTD, y_BHTD, *x_BHTD.stride(), *cos_BTD.stride(), *sin_BTD.stride(), *y_BHTD.stride(), H,
        HALF=D // 2, TRANSPOSED=transposed, HEADS=heads_per_program, PADDED_HALF=half,
        num_warps=max(heads_per_program * half // 256, 1),
    )  # fmt: skip
    return y_BHTD


@triton.jit
def _turn(
    x_ptr, cos_ptr, sin_ptr, y_ptr,
    x_stride_b, x_stride_h, x_stride_t, x_stride_d,
    cos_stride_b, cos_stride_t, cos_stride_d,
    sin_stride_b, sin_stride_t, sin_stride_d,
    y_stride_b, y_stride_h, y_stride_t, y_stride_d,
    all_heads,
    HALF: tl.constexpr, TRANSPOSED: tl.constexpr, HEADS: tl.constexpr, PADDED_HALF: tl.constexpr,
):  # fmt: skip
    b, t = tl.program_id(2).to(tl.int64), tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, PADDED_HALF)
    in_half = d < HALF
    mask = (h < all_heads)[:, None] & in_half[None, :]

    cos_ptr += b * cos_stride_b + t * cos_stride_t + d * cos_stride_d
    sin_ptr += b * sin_stride_b + t * sin_stride_t + d * sin_stride_d
    cos_a = tl.load(cos_ptr, mask=in_half, other=0.0).to(tl.float32)[None, :]
    cos_b = tl.load(cos_ptr + HALF * cos_stride_d, mask=in_half, other=0.0).to(tl.float32)[None, :]
    sin_a = tl.load(sin_ptr, mask=in_half, other=0.0).to(tl.float32)[None, :]
    sin_b = tl.load(sin_ptr + HALF * sin_stride_d, mask=in_half, other=0.0).to(tl.float32)[None, :]

    x_ptr += b * x_stride_b + t * x_stride_t + h.to(tl.int64)[:, None] * x_stride_h + d[None, :] * x_stride_d
    y_ptr += b * y_stride_b + t * y_stride_t + h.to(tl.int64)[:, None] * y_stride_h + d[None, :] * y_stride_d
    x_a = tl.load(x_ptr, mask=mask, other=0.0).to(tl.float32)
    x_b = tl.load(x_ptr + HALF * x_stride_d, mask=mask, other=0.0).to(tl.float32)
    if TRANSPOSED:
        y_a = x_a * cos_a + x_b * sin_b
        y_b = x_b * cos_b - x_a * sin_a
    else:
        y_a = x_a * cos_a - x_b * sin_a
        y_b = x_b * cos_b + x_a * sin_b
    tl.store(y_ptr, y_a, mask=mask)
    tl.store(y_ptr + HALF * y_stride_d, y_b, mask=mask)

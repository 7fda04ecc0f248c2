"""Rows of the residual stream in Triton: read where they are by the norm that takes them, added to where they belong.

    rms_norm     y_g = x_r (mean_e x_re^2 + epsilon)^-1/2 (offset + w)          r = index_g, or g without an index
    add_rows     x_r += f_g          put_rows     x_r = f_g          take_rows     f_g = x_r

Twins: the functions of these names in `jenga_kernels.reference`, and `rms_norm_backward`.

The naive way copies the selected rows, norms the copy, and puts results back by way of a zero tensor as large as the
residual stream. Here a row is read once, normed in registers and written once; results and gradients are added in
place, so what is not selected is neither read nor written. An index of -1 is a surplus row: its output is 0 and it is
added nowhere. Rows of an index must differ: two programs would add to one row at once.

Layers that hand a module rows of their own take these with `take_rows` first (jenga_core/layers/residual_rows.py): the
rows are their residual stream, which they keep anyway. Reading through an index inside the norm, and adding back in
place, are for layers that do not; `benchmarks kernels --only bandwidth` measures both ways.

A program holds a whole row, or several where rows are short (the norm of a head's queries), and each thread reads 16
bytes at a time.

Shapes   R rows of the residual stream, G selected rows, E hidden size
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_WIDTH = 32768
_TILE = 2048  # entries of a program, unless one row has more


def supports(width: int, dtype: torch.dtype) -> bool:
    """Whether the kernels compute this: rows of up to 32768 entries in bf16, fp16 or fp32."""
    return width <= LARGEST_WIDTH and dtype in (torch.bfloat16, torch.float16, torch.float32)


def rms_norm(
    x_RE: Tensor, weight_E: Tensor, *, epsilon: float, offset: float = 0.0, index_G: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The normed rows, G x E like x, and 1 / their root mean square, float32 G.

    Args:
        x_RE: rows may be any distance apart, entries of a row must be neighbours.
        weight_E: any float dtype.
        offset: added to the weight; Gemma's norms have 1.
        index_G: int64, the rows to norm, all different; -1 gives 0. None: all rows in order.

    Raises:
        ValueError: for a dtype, shape or stride that is not as above.
    """
    R, E = x_RE.shape
    G = R if index_G is None else index_G.shape[0]
    _check(x_RE, weight_E, index_G)
    y_GE = x_RE.new_empty(G, E)
    rstd_G = x_RE.new_empty(G, dtype=torch.float32)
    if y_GE.numel():
        grid, sizes, num_warps = _launch(G, E)
        _norm[grid](
            x_RE, weight_E, index_G, y_GE, rstd_G, x_RE.stride(0), G, E, epsilon, offset,
            HAS_INDEX=index_G is not None, **sizes, num_warps=num_warps,
        )  # fmt: skip
    return y_GE, rstd_G


def rms_norm_backward(
    d_y_GE: Tensor,
    x_RE: Tensor,
    weight_E: Tensor,
    rstd_G: Tensor,
    *,
    offset: float = 0.0,
    index_G: Tensor | None = None,
    into_RE: Tensor | None = None,
) -> Tensor:
    """The gradient of the rows that were normed.

    Args:
        d_y_GE: the gradient of the normed rows.
        x_RE, weight_E, rstd_G, offset, index_G: of the forward.
        into_RE: the gradient is added to its rows, in place; None: it is returned as G x E.
    """
    G, E = d_y_GE.shape
    _check(x_RE, weight_E, index_G)
    if d_y_GE.shape != (rstd_G.shape[0], x_RE.shape[1]) or d_y_GE.dtype != x_RE.dtype:
        raise ValueError(
            f"d_y must be {rstd_G.shape[0]} x {x_RE.shape[1]} of {x_RE.dtype}, got {tuple(d_y_GE.shape)} of "
            f"{d_y_GE.dtype}"
        )
    if into_RE is not None and (into_RE.shape != x_RE.shape or into_RE.dtype != x_RE.dtype):
        raise ValueError(f"into must be like x, {tuple(x_RE.shape)} of {x_RE.dtype}; got {tuple(into_RE.shape)}")
    d_y_GE = _with_neighbours(d_y_GE)
    out = x_RE.new_empty(G, E) if into_RE is None else into_RE
    _check(out, weight_E, index_G)
    if d_y_GE.numel():
        grid, sizes, num_warps = _launch(G, E)
        _norm_backward[grid](
            d_y_GE, x_RE, weight_E, index_G, rstd_G, out, d_y_GE.stride(0), x_RE.stride(0), out.stride(0), G, E, offset,
            HAS_INDEX=index_G is not None, ADD=into_RE is not None, **sizes, num_warps=num_warps,
        )  # fmt: skip
    return out


def add_rows(x_RE: Tensor, rows_GE: Tensor, index_G: Tensor) -> Tensor:
    """x, to whose rows `index` the given rows have been added in place."""
    return _move_into(x_RE, rows_GE, index_G, add=True)


def put_rows(x_RE: Tensor, rows_GE: Tensor, index_G: Tensor) -> Tensor:
    """x, whose rows `index` have been replaced by the given rows in place."""
    return _move_into(x_RE, rows_GE, index_G, add=False)


def take_rows(x_RE: Tensor, index_G: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """A copy of x's rows `index`, G x E; 0 where the index is -1. Here indices may repeat.

    Args:
        scale: float32, a single number on x's device that multiplies the rows; None leaves them as they are.
    """
    _check(x_RE, None, index_G)
    if scale is not None and (scale.numel() != 1 or scale.dtype != torch.float32 or scale.device != x_RE.device):
        raise ValueError(f"scale must be one float32 on {x_RE.device}, got {scale.dtype} of {tuple(scale.shape)}")
    G, E = index_G.shape[0], x_RE.shape[1]
    rows_GE = x_RE.new_empty(G, E)
    if rows_GE.numel():
        grid, sizes, num_warps = _launch(G, E)
        _take[grid](
            x_RE, rows_GE, index_G, scale, x_RE.stride(0), G, E,
            HAS_SCALE=scale is not None, **sizes, num_warps=num_warps,
        )  # fmt: skip
    return rows_GE


def _move_into(x_RE: Tensor, rows_GE: Tensor, index_G: Tensor, *, add: bool) -> Tensor:
    _check(x_RE, None, index_G)
    if rows_GE.shape != (index_G.shape[0], x_RE.shape[1]) or rows_GE.dtype != x_RE.dtype:
        raise ValueError(
            f"rows must be {index_G.shape[0]} x {x_RE.shape[1]} of {x_RE.dtype}, got {tuple(rows_GE.shape)} of "
            f"{rows_GE.dtype}"
        )
    rows_GE = _with_neighbours(rows_GE)
    G, E = rows_GE.shape
    if rows_GE.numel():
        grid, sizes, num_warps = _launch(G, E)
        _put[grid](
            x_RE, rows_GE, index_G, x_RE.stride(0), rows_GE.stride(0), G, E, ADD=add, **sizes, num_warps=num_warps
        )  # fmt: skip
    return x_RE


def _check(x_RE: Tensor, weight_E: Tensor | None, index_G: Tensor | None) -> None:
    if x_RE.dim() != 2 or not supports(x_RE.shape[1], x_RE.dtype):
        raise ValueError(
            f"rows must be two-dimensional, at most {LARGEST_WIDTH} wide and bf16, fp16 or fp32; got "
            f"{tuple(x_RE.shape)} of {x_RE.dtype}"
        )
    if x_RE.shape[1] > 1 and x_RE.stride(1) != 1:
        raise ValueError(f"entries of a row must be neighbours, got strides {x_RE.stride()}; call contiguous()")
    if weight_E is not None and (weight_E.shape != x_RE.shape[1:] or not weight_E.is_contiguous()):
        raise ValueError(f"the weight must be contiguous, {x_RE.shape[1]} entries; got shape {tuple(weight_E.shape)}")
    if index_G is not None and (index_G.dim() != 1 or index_G.dtype != torch.int64 or not index_G.is_contiguous()):
        raise ValueError(f"the index must be contiguous int64 G, got {index_G.dtype} of {tuple(index_G.shape)}")


def _with_neighbours(rows_GE: Tensor) -> Tensor:
    return rows_GE if rows_GE.shape[1] <= 1 or rows_GE.stride(1) == 1 else rows_GE.contiguous()


def _launch(rows: int, width: int) -> tuple[tuple[int], dict[str, int], int]:
    """Grid, tile, warps: 16 entries per thread, up to 32 warps."""
    padded = triton.next_power_of_2(width)
    rows_per_program = max(_TILE // padded, 1)
    num_warps = max(min(rows_per_program * padded // 512, 32), 1)
    return (triton.cdiv(rows, rows_per_program),), {"ROWS": rows_per_program, "WIDTH": padded}, num_warps


@triton.jit
def _norm(
    x_ptr, weight_ptr, index_ptr, y_ptr, rstd_ptr, x_stride, rows, width, epsilon, offset,
    HAS_INDEX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, WIDTH)
    r, is_real = _row_of(g, index_ptr, rows, HAS_INDEX)
    in_width = (e < width)[None, :]
    x = tl.load(x_ptr + r[:, None] * x_stride + e[None, :], mask=is_real[:, None] & in_width, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + e, mask=e < width, other=0.0).to(tl.float32) + offset
    rstd = tl.rsqrt(tl.sum(x * x, axis=1) / width + epsilon)
    tl.store(rstd_ptr + g, rstd, mask=g < rows)
    y = x * rstd[:, None] * weight[None, :]
    tl.store(y_ptr + g.to(tl.int64)[:, None] * width + e[None, :], y, mask=(g < rows)[:, None] & in_width)


@triton.jit
def _norm_backward(
    d_y_ptr, x_ptr, weight_ptr, index_ptr, rstd_ptr, out_ptr, d_y_stride, x_stride, out_stride, rows, width, offset,
    HAS_INDEX: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, WIDTH)
    r, is_real = _row_of(g, index_ptr, rows, HAS_INDEX)
    in_width = (e < width)[None, :]
    mask = is_real[:, None] & in_width
    g = g.to(tl.int64)
    d_y = tl.load(d_y_ptr + g[:, None] * d_y_stride + e[None, :], mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + r[:, None] * x_stride + e[None, :], mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + e, mask=e < width, other=0.0).to(tl.float32) + offset
    rstd = tl.load(rstd_ptr + g, mask=g < rows, other=0.0)
    x_hat = x * rstd[:, None]
    d_x_hat = d_y * weight[None, :]
    along = tl.sum(d_x_hat * x_hat, axis=1) / width
    d_x = (d_x_hat - x_hat * along[:, None]) * rstd[:, None]
    if ADD:
        out = out_ptr + r[:, None] * out_stride + e[None, :]
        tl.store(out, tl.load(out, mask=mask, other=0.0).to(tl.float32) + d_x, mask=mask)
    else:
        tl.store(out_ptr + g[:, None] * out_stride + e[None, :], d_x, mask=(g < rows)[:, None] & in_width)


@triton.jit
def _put(
    x_ptr, rows_ptr, index_ptr, x_stride, rows_stride, rows, width,
    ADD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, WIDTH)
    r, is_real = _row_of(g, index_ptr, rows, True)
    mask = is_real[:, None] & (e < width)[None, :]
    x = x_ptr + r[:, None] * x_stride + e[None, :]
    given = tl.load(rows_ptr + g.to(tl.int64)[:, None] * rows_stride + e[None, :], mask=mask, other=0.0)
    if ADD:
        given = tl.load(x, mask=mask, other=0.0).to(tl.float32) + given.to(tl.float32)
    tl.store(x, given, mask=mask)


@triton.jit
def _take(
    x_ptr, rows_ptr, index_ptr, scale_ptr, x_stride, rows, width,
    HAS_SCALE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, WIDTH)
    r, is_real = _row_of(g, index_ptr, rows, True)
    in_width = (e < width)[None, :]
    x = tl.load(x_ptr + r[:, None] * x_stride + e[None, :], mask=is_real[:, None] & in_width, other=0.0)
    if HAS_SCALE:
        x = x.to(tl.float32) * tl.load(scale_ptr)
    tl.store(rows_ptr + g.to(tl.int64)[:, None] * width + e[None, :], x, mask=(g < rows)[:, None] & in_width)


@triton.jit
def _row_of(g, index_ptr, rows, HAS_INDEX: tl.constexpr):
    if HAS_INDEX:
        r = tl.load(index_ptr + g, mask=g < rows, other=-1)
        is_real = r >= 0
    else:
        r = g.to(tl.int64)
        is_real = g < rows
    return r, is_real

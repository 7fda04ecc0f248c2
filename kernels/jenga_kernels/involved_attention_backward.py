"""Backward of involved_attention.py: dQ of every row, dK and dV of the rows' own keys.

    P  = exp(S - lse)      dP = dO V^T      dS = P (dP - rowsum(dO O)) (1 - (S / cap)^2)
    dQ = scale dS K        dK = scale dS^T Q        dV = P^T dO

dQ goes against all keys. Keys and values of tokens that are no rows are constants, so dK and dV exist for the rows' own
keys only, and come from the rows' queries only. In units of one product over all causal pairs, with a share g of the
tokens as rows, that is 3 g for dQ and 4 g^2 for dK and dV, where dense attention's backward takes 5.

One kernel streams key tiles per tile of rows; the other streams tiles of rows per tile of own keys, and sums over the
query heads of a group in registers. There are no atomics, so results repeat bit for bit.

Twin: `jenga_kernels.reference.involved_attention_backward`.

Shapes   B batch, H query heads, K key/value heads, G rows (queries), T keys, D head size
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jenga_kernels.involved_attention import Tiles, capped_scores, check, key_ranges


def _query_tiles(head_size: int, dtype: torch.dtype) -> Tiles:
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1)
    if head_size <= 64:
        return Tiles(64, 64, 4, 3)
    return Tiles(128, 64, 8, 3) if head_size <= 128 else Tiles(64, 32, 8, 1)


def _key_tiles(head_size: int, dtype: torch.dtype) -> Tiles:
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1)
    if head_size <= 64:
        return Tiles(128, 64, 4, 2)
    return Tiles(64, 128, 8, 2) if head_size <= 128 else Tiles(32, 64, 8, 1)


def involved_attention_backward(
    do_BHGD: Tensor,
    q_BHGD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    o_BHGD: Tensor,
    lse_BHG: Tensor,
    first_BG: Tensor,
    last_BG: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ (B x H x G x D), and dK and dV of the rows' own keys (B x K x G x D), in q's dtype; 0 for surplus rows.

    Args as in `involved_attention`, with its results and the gradient of its output.
    """
    check(q_BHGD, k_BKTD, v_BKTD, first_BG, last_BG, scale)
    B, H, G, D = q_BHGD.shape
    K = k_BKTD.shape[1]
    dq_BHGD = q_BHGD.new_empty(B, G, H, D).transpose(1, 2)
    dk_BKGD = k_BKTD.new_empty(B, G, K, D).transpose(1, 2)
    dv_BKGD = v_BKTD.new_empty(B, G, K, D).transpose(1, 2)
    if G == 0:
        return dq_BHGD, dk_BKGD, dv_BKGD
    first = torch.where(last_BG >= 0, first_BG, k_BKTD.shape[2]).to(torch.int32).contiguous()
    last = last_BG.to(torch.int32).contiguous()
    seen_until_BG = torch.searchsorted(first, last, right=True).to(torch.int32)  # rows before it may see the key
    delta_BHG = torch.empty_like(lse_BHG)
    common = {"HAS_CAP": softcap is not None, "HEAD_SIZE": D, "PADDED": max(triton.next_power_of_2(D), 16)}
    strides = (
        *q_BHGD.stride(),
        *k_BKTD.stride(),
        *v_BKTD.stride(),
        *o_BHGD.stride(),
        *do_BHGD.stride(),
        *dq_BHGD.stride(),
        *dk_BKGD.stride(),
        *dv_BKGD.stride(),
    )
    sizes = (G, k_BKTD.shape[2], H, H // K, scale, softcap or 0.0)
    tensors = (q_BHGD, k_BKTD, v_BKTD, o_BHGD, do_BHGD, lse_BHG, delta_BHG, dq_BHGD, dk_BKGD, dv_BKGD)
    tiles = _query_tiles(D, q_BHGD.dtype)
    _query_gradient[(triton.cdiv(G, tiles.rows), B * H)](
        *tensors,
        first,
        last,
        *strides,
        *sizes,
        **common,
        ROWS=tiles.rows,
        KEYS=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    tiles = _key_tiles(D, q_BHGD.dtype)
    _key_gradient[(triton.cdiv(G, tiles.keys), B * K)](
        *tensors,
        first,
        last,
        seen_until_BG,
        *strides,
        *sizes,
        **common,
        ROWS=tiles.rows,
        KEYS=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return dq_BHGD, dk_BKGD, dv_BKGD


@triton.jit
def _through_cap(gradient, scores, softcap, HAS_CAP: tl.constexpr):
    # d cap tanh(x / cap) / dx = 1 - tanh^2
    LOG2E: tl.constexpr = 1.4426950408889634
    if HAS_CAP:
        capped = scores / (LOG2E * softcap)
        return gradient * (1.0 - capped * capped)
    return gradient


@triton.jit
def _gather_query_gradient(
    dq, queries, do, lse, delta, k_tile, v_tile, k_step, v_step, begin, end, keys, first, last, in_head, scale, softcap,
    MASKED: tl.constexpr, HAS_CAP: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    for start in range(begin, end, KEYS):
        j = start + tl.arange(0, KEYS)
        at = tl.cast(start, tl.int64)
        if MASKED:
            inside = in_head[:, None] & (j < keys)[None, :]
            k = tl.load(k_tile + at * k_step, mask=inside, other=0.0)
            v = tl.load(v_tile + at * v_step, mask=inside, other=0.0)
        else:
            k = tl.load(k_tile + at * k_step, mask=in_head[:, None], other=0.0)
            v = tl.load(v_tile + at * v_step, mask=in_head[:, None], other=0.0)
        s = capped_scores(tl.dot(queries, k, input_precision="ieee"), scale, softcap, HAS_CAP)
        p = tl.exp2(s - lse[:, None])
        if MASKED:
            p = tl.where((j[None, :] >= first[:, None]) & (j[None, :] <= last[:, None]), p, 0.0)
        ds = p * (tl.dot(do, v, input_precision="ieee") - delta[:, None])
        ds = _through_cap(ds, s, softcap, HAS_CAP)
        dq = tl.dot(ds.to(k.dtype), tl.trans(k), dq, input_precision="ieee")
    return dq


@triton.jit
def _query_gradient(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, first_ptr, last_ptr,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, o_b, o_h, o_t, o_d, do_b, do_h, do_t, do_d,
    dq_b, dq_h, dq_t, dq_d, dk_b, dk_h, dk_t, dk_d, dv_b, dv_h, dv_t, dv_d,
    rows, keys, heads, group, scale, softcap,
    HAS_CAP: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    g = tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, PADDED)
    in_head = d < HEAD_SIZE
    exists = g < rows
    inside = exists[:, None] & in_head[None, :]
    first = tl.load(first_ptr + batch * rows + g, mask=exists, other=0)
    last = tl.load(last_ptr + batch * rows + g, mask=exists, other=-1)
    begin, all_begin, all_end, end = key_ranges(first, last, KEYS)

    rows_64 = g.to(tl.int64)
    queries = tl.load(
        q_ptr + batch * q_b + head * q_h + rows_64[:, None] * q_t + d[None, :] * q_d, mask=inside, other=0.0
    )
    out = tl.load(o_ptr + batch * o_b + head * o_h + rows_64[:, None] * o_t + d[None, :] * o_d, mask=inside, other=0.0)
    do = tl.load(
        do_ptr + batch * do_b + head * do_h + rows_64[:, None] * do_t + d[None, :] * do_d, mask=inside, other=0.0
    )
    of_row = (batch * heads + head) * rows + g
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), axis=1)
    tl.store(delta_ptr + of_row, delta, mask=exists)
    lse = tl.load(lse_ptr + of_row, mask=exists, other=float("inf")) * LOG2E
    j = tl.arange(0, KEYS)
    k_tile = k_ptr + batch * k_b + (head // group) * k_h + j[None, :] * k_t + d[:, None] * k_d
    v_tile = v_ptr + batch * v_b + (head // group) * v_h + j[None, :] * v_t + d[:, None] * v_d

    dq = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    dq = _gather_query_gradient(
        dq, queries, do, lse, delta, k_tile, v_tile, k_t, v_t, begin, all_begin, keys, first, last, in_head, scale,
        softcap, MASKED=True, HAS_CAP=HAS_CAP, KEYS=KEYS,
    )  # fmt: skip
    dq = _gather_query_gradient(
        dq, queries, do, lse, delta, k_tile, v_tile, k_t, v_t, all_begin, all_end, keys, first, last, in_head, scale,
        softcap, MASKED=False, HAS_CAP=HAS_CAP, KEYS=KEYS,
    )  # fmt: skip
    dq = _gather_query_gradient(
        dq, queries, do, lse, delta, k_tile, v_tile, k_t, v_t, all_end, end, keys, first, last, in_head, scale,
        softcap, MASKED=True, HAS_CAP=HAS_CAP, KEYS=KEYS,
    )  # fmt: skip
    dq_tile = dq_ptr + batch * dq_b + head * dq_h + rows_64[:, None] * dq_t + d[None, :] * dq_d
    tl.store(dq_tile, (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gather_key_gradient(
    dk, dv, k, v, position, q_tile, do_tile, lse_row, delta_row, first_row, last_row, q_step, do_step, begin, end, rows,
    in_head, scale, softcap, MASKED: tl.constexpr, HAS_CAP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    LOG2E: tl.constexpr = 1.4426950408889634
    for start in range(begin, end, ROWS):
        g = start + tl.arange(0, ROWS)
        exists = g < rows
        at = tl.cast(start, tl.int64)
        queries = tl.load(q_tile + at * q_step, mask=exists[:, None] & in_head[None, :], other=0.0)
        do = tl.load(do_tile + at * do_step, mask=exists[:, None] & in_head[None, :], other=0.0)
        lse = tl.load(lse_row + g, mask=exists, other=float("inf")) * LOG2E
        delta = tl.load(delta_row + g, mask=exists, other=0.0)
        s = capped_scores(tl.dot(k, tl.trans(queries), input_precision="ieee"), scale, softcap, HAS_CAP)
        p = tl.exp2(s - lse[None, :])
        if MASKED:
            first = tl.load(first_row + g, mask=exists, other=0)
            last = tl.load(last_row + g, mask=exists, other=-1)
            p = tl.where((position[:, None] >= first[None, :]) & (position[:, None] <= last[None, :]), p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        ds = p * (tl.dot(v, tl.trans(do), input_precision="ieee") - delta[None, :])
        ds = _through_cap(ds, s, softcap, HAS_CAP)
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _key_gradient(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, first_ptr, last_ptr, until_ptr,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, o_b, o_h, o_t, o_d, do_b, do_h, do_t, do_d,
    dq_b, dq_h, dq_t, dq_d, dk_b, dk_h, dk_t, dk_d, dv_b, dv_h, dv_t, dv_d,
    rows, keys, heads, group, scale, softcap,
    HAS_CAP: tl.constexpr, HEAD_SIZE: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    key_heads = heads // group
    tile = tl.program_id(0)  # the first keys are seen by most rows: longest first again
    batch = (tl.program_id(1) // key_heads).to(tl.int64)
    key_head = (tl.program_id(1) % key_heads).to(tl.int64)
    own = tile * KEYS + tl.arange(0, KEYS)
    d = tl.arange(0, PADDED)
    in_head = d < HEAD_SIZE
    exists = own < rows
    position = tl.load(last_ptr + batch * rows + own, mask=exists, other=-1)
    has_key = position >= 0
    until = tl.load(until_ptr + batch * rows + own, mask=has_key, other=0)

    # Rows before the tile are too early to see its keys; after the masked edge all of them may, until windows end.
    begin = tile * KEYS // ROWS * ROWS
    end = tl.max(until)
    all_begin = tl.minimum((tile * KEYS + KEYS + ROWS - 1) // ROWS * ROWS, (end + ROWS - 1) // ROWS * ROWS)
    all_end = tl.maximum(tl.min(tl.where(has_key, until, end)) // ROWS * ROWS, all_begin)

    positions_64 = tl.where(has_key, position, 0).to(tl.int64)
    inside = has_key[:, None] & in_head[None, :]
    k = tl.load(
        k_ptr + batch * k_b + key_head * k_h + positions_64[:, None] * k_t + d[None, :] * k_d, mask=inside, other=0.0
    )
    v = tl.load(
        v_ptr + batch * v_b + key_head * v_h + positions_64[:, None] * v_t + d[None, :] * v_d, mask=inside, other=0.0
    )
    first_row = first_ptr + batch * rows
    last_row = last_ptr + batch * rows
    i = tl.arange(0, ROWS)
    dk = tl.zeros((KEYS, PADDED), dtype=tl.float32)
    dv = tl.zeros((KEYS, PADDED), dtype=tl.float32)
    for member in range(group):
        head = key_head * group + member
        q_tile = q_ptr + batch * q_b + head * q_h + i[:, None] * q_t + d[None, :] * q_d
        do_tile = do_ptr + batch * do_b + head * do_h + i[:, None] * do_t + d[None, :] * do_d
        lse_row = lse_ptr + (batch * heads + head) * rows
        delta_row = delta_ptr + (batch * heads + head) * rows
        dk, dv = _gather_key_gradient(
            dk, dv, k, v, position, q_tile, do_tile, lse_row, delta_row, first_row, last_row, q_t, do_t,
            begin, all_begin, rows, in_head, scale, softcap, MASKED=True, HAS_CAP=HAS_CAP, ROWS=ROWS,
        )  # fmt: skip
        dk, dv = _gather_key_gradient(
            dk, dv, k, v, position, q_tile, do_tile, lse_row, delta_row, first_row, last_row, q_t, do_t,
            all_begin, all_end, rows, in_head, scale, softcap, MASKED=False, HAS_CAP=HAS_CAP, ROWS=ROWS,
        )  # fmt: skip
        dk, dv = _gather_key_gradient(
            dk, dv, k, v, position, q_tile, do_tile, lse_row, delta_row, first_row, last_row, q_t, do_t,
            all_end, end, rows, in_head, scale, softcap, MASKED=True, HAS_CAP=HAS_CAP, ROWS=ROWS,
        )  # fmt: skip
    dk = tl.where(has_key[:, None], dk, 0.0)  # a surplus row's key was 0, not unseen
    dv = tl.where(has_key[:, None], dv, 0.0)
    own_64 = own.to(tl.int64)
    stored = exists[:, None] & in_head[None, :]
    dk_tile = dk_ptr + batch * dk_b + key_head * dk_h + own_64[:, None] * dk_t + d[None, :] * dk_d
    dv_tile = dv_ptr + batch * dv_b + key_head * dv_h + own_64[:, None] * dv_t + d[None, :] * dv_d
    tl.store(dk_tile, (dk * scale).to(dk_ptr.dtype.element_ty), mask=stored)
    tl.store(dv_tile, dv.to(dv_ptr.dtype.element_ty), mask=stored)

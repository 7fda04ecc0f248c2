"""Scores of block pairs, with gradient: what a predictor learns by.

    I_mn = max over i in block m, j in block n, i > j, of (1/H) sum over h of s relu(q_h,i . k_h,j)

The gradient of a maximum goes to the pair of tokens that has it: forward remembers which pair that is, and backward
touches N of a row's T key tokens. Query blocks come in any number, so a step may look at some of them; memory is linear
in T.

Shapes   M query blocks, b tokens per block, N key blocks, T = N b tokens, H query heads, K key heads, d head size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pair_maxima(
    q_HSd: Tensor, k_KTd: Tensor, block_M: Tensor, *, block_tokens: int, scale: float, window_tokens: int | None = None
) -> Tensor:
    """I_mn of one document, float32 M x N; 0 where the key block is not seen.

    Args:
        q_HSd: queries of the tokens of the query blocks, S = M b, float32.
        k_KTd: keys of all tokens, T a multiple of b.
        block_M: int64, ascending: which blocks the queries are of.
    """
    scores: Tensor = _PairMaxima.apply(q_HSd, k_KTd, block_M, block_tokens, scale, window_tokens)
    return scores


class _PairMaxima(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_HSd: Tensor,
        k_KTd: Tensor,
        block_M: Tensor,
        block_tokens: int,
        scale: float,
        window_tokens: int | None,
    ) -> Tensor:
        b, M, T = block_tokens, len(block_M), k_KTd.shape[1]
        N = T // b
        best_MN = q_HSd.new_empty(M, N)
        pair_MN = torch.empty(M, N, dtype=torch.long, device=q_HSd.device)
        token_T = torch.arange(T, device=q_HSd.device)
        for row, block in enumerate(block_M.tolist()):
            asked_bT = _mean_over_heads(q_HSd[:, row * b : (row + 1) * b], k_KTd) * scale
            distance_bT = (block * b + torch.arange(b, device=token_T.device))[:, None] - token_T
            seen_bT = distance_bT > 0
            if window_tokens is not None:
                seen_bT &= distance_bT < window_tokens
            of_pairs = (asked_bT * seen_bT).view(b, N, b).transpose(0, 1).reshape(N, b * b)
            best_MN[row], pair_MN[row] = of_pairs.max(dim=1)
        ctx.save_for_backward(q_HSd, k_KTd, pair_MN, best_MN > 0)
        ctx.b, ctx.scale = b, scale
        return best_MN

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_HSd, k_KTd, pair_MN, is_asked_MN = ctx.saved_tensors
        b, (H, _, d), K = ctx.b, q_HSd.shape, k_KTd.shape[0]
        M, N = pair_MN.shape
        query_MN = torch.arange(M, device=pair_MN.device)[:, None] * b + pair_MN // b
        key_MN = torch.arange(N, device=pair_MN.device) * b + pair_MN % b
        asks_HPd = q_HSd[:, query_MN.flatten()]
        answers_HPd = k_KTd[:, key_MN.flatten()].repeat_interleave(H // K, dim=0)
        on_HP1 = (asks_HPd * answers_HPd).sum(dim=2, keepdim=True) > 0
        slope_HP1 = (gradients[0] * is_asked_MN).flatten()[:, None] * on_HP1 * (ctx.scale / H)
        d_q_HSd = torch.zeros_like(q_HSd).view(H, M, b, d)
        d_k_KTd = torch.zeros_like(k_KTd).view(K, N, b, d)
        # Sums by matrix products, not by atomics: a GPU gives the same bits every time.
        into_query_MbN = torch.nn.functional.one_hot(pair_MN // b, b).transpose(1, 2).to(q_HSd.dtype)
        into_key_NbM = torch.nn.functional.one_hot(pair_MN % b, b).permute(1, 2, 0).to(q_HSd.dtype)
        torch.matmul(into_query_MbN, (slope_HP1 * answers_HPd).view(H, M, N, d), out=d_q_HSd)
        to_key_KNMd = (slope_HP1 * asks_HPd).view(K, H // K, M, N, d).sum(dim=1).transpose(1, 2)
        torch.matmul(into_key_NbM, to_key_KNMd, out=d_k_KTd)
        return d_q_HSd.view_as(q_HSd), d_k_KTd.view_as(k_KTd), None, None, None, None


def _mean_over_heads(q_Hbd: Tensor, k_KTd: Tensor) -> Tensor:
    """(1/H) sum over h of relu(q_h . k_h): b x T."""
    H, b, d = q_Hbd.shape
    K, T, _ = k_KTd.shape
    total_bT = q_Hbd.new_zeros(b, T)
    for q_Jbd, k_Td in zip(q_Hbd.view(K, H // K, b, d), k_KTd, strict=True):
        total_bT += (q_Jbd @ k_Td.T).relu_().sum(dim=0)
    return total_bT / H

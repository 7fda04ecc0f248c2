"""Attention when only some tokens are involved.

An *eliminated* token is no query, key or value: attention runs on the rows of the involved tokens alone. A
*forward-only* token keeps its key and value, as constants: the involved rows attend to all T keys, of which only their
own carry gradient, and that from involved queries only.

`attend` computes the output, by the fastest code that knows the rule of who sees whom. `attention_of_rows` takes that
output as known and gives the gradient, so that what an earlier pass over all tokens has computed is not computed again.

Shapes   B batch, H query heads, K key/value heads, T tokens, G involved tokens, D head size
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jenga_kernels import reference
from torch import Tensor

from jenga_core.elimination.selection import Selection
from jenga_core.layers.rows import put_rows, take_rows
from jenga_core.layers.sight import Sight


@dataclass(frozen=True)
class AttentionCall:
    """What a layer hands its attention function."""

    q_BHGD: Tensor
    k_BKGD: Tensor
    v_BKGD: Tensor
    scale: float
    window_tokens: int | None
    """A token sees itself and the window_tokens - 1 before it; None: all before it."""
    softcap: float | None = None
    """Cap of the scores; None: none."""
    dropout: float = 0.0
    """Rate at which attention weights are to be dropped; what computes attention here knows 0 only."""


@dataclass(frozen=True)
class Attended:
    """What a pass over all tokens leaves of one layer's attention."""

    o_BHTD: Tensor
    lse_BHT: Tensor
    """Log of the softmax's sum, float32."""
    k_BKTD: Tensor
    v_BKTD: Tensor
    sight: Sight

    def with_rows(self, call: AttentionCall, selection: Selection) -> Attended:
        """The same keys and values, but for those of the involved rows, and the rows' own output over them."""
        k_BKTD, v_BKTD = (
            put_rows(everyone.transpose(1, 2), rows.transpose(1, 2), selection).transpose(1, 2)
            for everyone, rows in ((self.k_BKTD, call.k_BKGD), (self.v_BKTD, call.v_BKGD))
        )
        again = replace(call, k_BKGD=k_BKTD, v_BKGD=v_BKTD)
        return attend(again, self.sight.over_all_keys(selection))

    def at_rows(self, selection: Selection) -> Attended:
        """The involved rows of the output; keys and values of all tokens stay."""
        index_BG = selection.token_index_BG
        o_BHGD = take_rows(self.o_BHTD.transpose(1, 2), index_BG).transpose(1, 2)
        lse_BHG = self.lse_BHT.gather(2, index_BG[:, None, :].expand(-1, self.lse_BHT.shape[1], -1))
        return Attended(o_BHGD, lse_BHG, self.k_BKTD, self.v_BKTD, self.sight.over_all_keys(selection))


def attend(call: AttentionCall, sight: Sight) -> Attended:
    """Attention of rows over the keys given, without gradient."""
    q, k, v = call.q_BHGD, call.k_BKGD, call.v_BKGD
    with torch.no_grad():
        if sight.is_causal and call.softcap is None and _cudnn_takes(q, k, v):
            o, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                q, k, v, None, True, 0.0, True, False, scale=call.scale
            )
            return Attended(o, lse.reshape(q.shape[:3]), k, v, sight)
        o, lse = _forward_of(q)(q, k, v, sight.first_BG, sight.last_BG, scale=call.scale, softcap=call.softcap)
    return Attended(o, lse, k, v, sight)


def attention_of_rows(call: AttentionCall, attended: Attended) -> Tensor:
    """Attention with gradient whose output is known, B x H x G x D.

    Args:
        call: the rows' own queries, keys and values, which get the gradients.
        attended: the rows' output, and the keys and values that they attended to.
    """
    out: Tensor = _AttentionOfRows.apply(call.q_BHGD, call.k_BKGD, call.v_BKGD, call, attended)
    return out


class _AttentionOfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, attended: Attended) -> Tensor:
        ctx.save_for_backward(q, attended.o_BHTD, attended.lse_BHT, attended.k_BKTD, attended.v_BKTD)
        ctx.rule = call.scale, call.softcap, attended.sight
        return attended.o_BHTD.view_as(attended.o_BHTD)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, o, lse, k, v = ctx.saved_tensors
        scale, softcap, sight = ctx.rule
        if sight.is_causal and softcap is None and _cudnn_takes(q, k, v):
            empty = torch.empty((), dtype=torch.int64, device=q.device)  # of the dropout, which there is not
            gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
                do, q, k, v, o, lse[..., None], empty, empty, None, None, None, *q.shape[2:3], *k.shape[2:3], 0.0, True,
                scale=scale,
            )  # fmt: skip
        else:
            gradients = _backward_of(q)(
                do, q, k, v, o, lse, sight.first_BG, sight.last_BG, scale=scale, softcap=softcap
            )
        return (*gradients, None, None)


def _cudnn_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether PyTorch would give causal attention of these to cuDNN, the fastest there is on a Hopper GPU."""
    if not q.is_cuda:
        return False
    parameters = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, True, k.shape[1] != q.shape[1])
    return torch.backends.cuda.can_use_cudnn_attention(parameters)


def _forward_of(q: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The Triton kernel on a GPU, its twin elsewhere and for what it does not take."""
    if q.is_cuda:
        from jenga_kernels import involved_attention as kernel

        if kernel.supports(q.shape[-1], q.dtype):
            return kernel.involved_attention
    return reference.involved_attention


def _backward_of(q: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    if q.is_cuda:
        from jenga_kernels import involved_attention, involved_attention_backward

        if involved_attention.supports(q.shape[-1], q.dtype):
            return involved_attention_backward.involved_attention_backward
    return reference.involved_attention_backward


def mask_among_involved(mask: Tensor | None, selection: Selection) -> Tensor | None:
    """The mask of involved queries over involved keys, for layers that attend by transformers' own functions.

    None stays None: kept tokens are in causal order and surplus rows come after them, so plain causal attention is
    right. A 4-D mask (additive or bool) loses its other rows and columns; surplus keys are hidden.
    """
    if mask is None:
        return None
    if mask.dim() == 2:  # flash attention: 1 for tokens to attend to
        return take_rows(mask, selection.token_index_BG) * selection.is_kept_BG
    rows_B1GG = _columns(_rows(mask, selection.token_index_BG), selection.token_index_BG)
    surplus_B11G = ~selection.is_kept_BG[:, None, None, :]
    itself_GG = torch.eye(surplus_B11G.shape[-1], dtype=torch.bool, device=mask.device)
    hidden = surplus_B11G & ~itself_GG  # a surplus row may see itself: a row that sees nothing would be NaN
    if mask.dtype == torch.bool:
        return rows_B1GG & ~hidden
    return rows_B1GG.masked_fill(hidden, torch.finfo(mask.dtype).min)


def _rows(mask_B1TT: Tensor, index_BG: Tensor) -> Tensor:
    return take_rows(mask_B1TT.transpose(1, 2), index_BG).transpose(1, 2)


def _columns(mask_B1GT: Tensor, index_BG: Tensor) -> Tensor:
    B, G = index_BG.shape
    mask_B1GT = mask_B1GT.expand(B, -1, -1, -1)
    return mask_B1GT.gather(3, index_BG[:, None, None, :].expand(B, mask_B1GT.shape[1], G, G))

"""Attention when only some tokens are involved.

An *eliminated* token is no query, key or value: attention runs on the rows of the involved tokens alone. A
*forward-only* token keeps its key and value, as constants: the involved rows attend to all T keys, of which only their
own carry gradient, and that from involved queries only.

`attend` computes the output, by the fastest code that knows the rule of who sees whom. `attention_of_rows` gives the
gradient. It takes as known what an earlier pass has kept of its own attention (`Attended`), and makes the rest again.

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
from jenga_core.layers.sink import add_sink_gradients, merge_sink


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
    """What is kept of one layer's attention. None: not kept, to be made again."""

    sight: Sight
    """The keys that each row sees."""
    k_BKTD: Tensor | None = None
    """None: the rows make their own, and see no others."""
    v_BKTD: Tensor | None = None
    """As k."""
    o_BHTD: Tensor | None = None
    """The output, of all tokens or of the rows alone (`at_rows`)."""
    lse_BHT: Tensor | None = None
    """Log of the softmax's sum, float32; as o."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All but the sight, in their order."""
        return self.k_BKTD, self.v_BKTD, self.o_BHTD, self.lse_BHT

    def at_rows(self, selection: Selection) -> Attended:
        """Of the involved rows alone; keys and values of all tokens stay."""
        index_BG, sight = selection.token_index_BG, self.sight.over_all_keys(selection)
        if self.o_BHTD is None or self.lse_BHT is None:
            return Attended(sight, self.k_BKTD, self.v_BKTD)
        o_BHGD = take_rows(self.o_BHTD.transpose(1, 2), index_BG).transpose(1, 2)
        lse_BHG = self.lse_BHT.gather(2, index_BG[:, None, :].expand(-1, self.lse_BHT.shape[1], -1))
        return Attended(sight, self.k_BKTD, self.v_BKTD, o_BHGD, lse_BHG)


def attend(call: AttentionCall, sight: Sight) -> tuple[Tensor, Tensor]:
    """Attention of rows over the keys given, B x H x G x D, and the log of the softmax's sum, B x H x G in float32;
    without gradient."""
    q, k, v = call.q_BHGD, call.k_BKGD, call.v_BKGD
    with torch.no_grad():
        if sight.is_causal and call.softcap is None and _cudnn_takes(q, k, v):
            o, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
                q, k, v, None, True, 0.0, True, False, scale=call.scale
            )
            return o, lse.reshape(q.shape[:3])
        o, lse = _forward_of(q)(q, k, v, sight.first_BG, sight.last_BG, scale=call.scale, softcap=call.softcap)
        if sight.sink is not None:
            merge_sink(o, lse, q, k, v, sight, scale=call.scale, softcap=call.softcap)
        return o, lse


def attention_of_rows(call: AttentionCall, attended: Attended) -> Tensor:
    """Attention with gradient, B x H x G x D; nothing is computed if the output was kept.

    Args:
        call: the rows' own queries, keys and values, which get the gradients.
        attended: what is kept of these rows' attention.
    """
    k, v, o, lse = attended.tensors
    over = call if k is None or v is None else replace(call, k_BKGD=k, v_BKGD=v)
    if o is None or lse is None:
        o, lse = attend(over, attended.sight)
    out: Tensor = _AttentionOfRows.apply(call.q_BHGD, call.k_BKGD, call.v_BKGD, over, attended.sight, o, lse)
    return out


def attention_over_new_keys(call: AttentionCall, attended: Attended, selection: Selection) -> Tensor:
    """Attention of rows that are not what they were: over all keys and values that were kept, but for the rows' own."""
    assert attended.k_BKTD is not None and attended.v_BKTD is not None
    k_BKTD, v_BKTD = (
        put_rows(everyone.transpose(1, 2), rows.transpose(1, 2), selection).transpose(1, 2)
        for everyone, rows in ((attended.k_BKTD, call.k_BKGD), (attended.v_BKTD, call.v_BKGD))
    )
    return attention_of_rows(call, Attended(attended.sight.over_all_keys(selection), k_BKTD, v_BKTD))


def attention_in_groups(call: AttentionCall, sight: Sight, group_keys: int, sink_keys: int) -> Tensor:
    """Attention with gradient within groups of keys, for half of the heads shifted by half a group, B x H x G x D: the
    shifted sparse attention of LongLoRA (Chen et al. 2024, section 3.2), but that no group goes round the end, and that
    every row sees the first `sink_keys` of its document, too."""
    parts = []
    for shift, (queries, keys) in zip((0, group_keys // 2), _halves(call), strict=True):
        part = replace(call, q_BHGD=call.q_BHGD[:, queries], k_BKGD=call.k_BKGD[:, keys], v_BKGD=call.v_BKGD[:, keys])
        if part.q_BHGD.shape[1] == 0:
            continue
        parts.append(attention_of_rows(part, Attended(sight.within_groups(group_keys, shift, sink_keys))))
    return torch.cat(parts, dim=1)


def _halves(call: AttentionCall) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Query heads and their key heads; the second half is the smaller one, and has none of a single head."""
    H, K = call.q_BHGD.shape[1], call.k_BKGD.shape[1]
    if K == 1:
        middle = (H + 1) // 2
        return (slice(middle), slice(1)), (slice(middle, H), slice(1))
    middle = (K + 1) // 2
    return (slice(middle * H // K), slice(middle)), (slice(middle * H // K, H), slice(middle, K))


class _AttentionOfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, over: AttentionCall, sight: Sight, o: Tensor, lse: Tensor
    ) -> Tensor:
        ctx.save_for_backward(q, over.k_BKGD, over.v_BKGD, o, lse)
        ctx.rule = over.scale, over.softcap, sight
        return o.view_as(o)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse = ctx.saved_tensors
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
            if sight.sink is not None:
                add_sink_gradients(gradients, do, q, k, v, o, lse, sight, scale=scale, softcap=softcap)
        return (*gradients, None, None, None, None)


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

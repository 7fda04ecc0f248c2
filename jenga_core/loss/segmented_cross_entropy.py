"""Next-token cross entropy, segment by segment: logits never exist in full (paper, technique 3, peak cutting).

For hidden states h and the head's weight W,

    loss = sum over rows r with a label of  log sum_v exp(h_r . W_v) - h_r . W_target(r)

One segment of rows at a time: its logits are made, give their loss and, in their own memory, their gradient, which
gives at once

    d loss / d h_r = (softmax(h_r W^T) - onehot(target)) W

All segments use one buffer of segment_tokens x V. What is kept for backward is the gradient of the rows that have a
label, as large as these rows of h, instead of logits, log-probabilities and their gradient, each V / E times larger.
Rows without a label are left out before the first product and cost nothing. Gradients are exact; the artifact divides
by the sequence length and takes batch 1 only, here the caller divides by the labels that were counted.

A model that soft-caps its logits z (Gemma) uses c = cap tanh(z / cap) in their place, whose slope 1 - (c / cap)^2 then
multiplies softmax(c) - onehot(target).

Shapes   M rows, L rows that are computed, S rows of a segment, E hidden size, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jenga_kernels import reference
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""Targets that carry no loss, as everywhere in the field."""

_VOCABULARY_CHUNK = 16384
"""Rows of a trained head's gradient that are computed at once, before they are added in float32."""


def segmented_cross_entropy(
    hidden: Tensor,
    weight_VE: Tensor,
    targets: Tensor,
    *,
    segment_tokens: int,
    softcap: float | None = None,
    leave_out: bool = True,
) -> Tensor:
    """Sum (not mean) of next-token losses in nats, a float32 scalar (float64 for float64); 0 when no row has a label.

    Args:
        hidden: ... x E, any float dtype.
        weight_VE: the head's weight, same dtype; gets a gradient when it requires one.
        targets: ... int64, already shifted: the token that row should predict, or -100.
        segment_tokens: rows whose logits exist at once.
        softcap: bound on the logits; None leaves them as they are.
        leave_out: rows without a label are found and left out, for which a GPU is waited for. False, if few rows have
            none and the targets are known to be right: all rows are computed. The result is the same.

    Raises:
        ValueError: shapes or dtypes do not fit, or (if `leave_out`) a target is neither a row of the head nor -100.
    """
    hidden_ME, targets_M = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if hidden_ME.shape[0] != targets_M.shape[0]:
        raise ValueError(f"{hidden_ME.shape[0]} hidden rows but {targets_M.shape[0]} targets; one each is needed")
    if hidden_ME.dtype != weight_VE.dtype or hidden_ME.shape[1] != weight_VE.shape[1]:
        raise ValueError(
            f"hidden rows are {hidden_ME.shape[1]} wide and {hidden_ME.dtype}, the head's are {weight_VE.shape[1]} "
            f"wide and {weight_VE.dtype}; both must agree"
        )
    has_label_M = targets_M != IGNORE
    if leave_out or weight_VE.requires_grad:
        rows = _Rows(has_label_M, count_labels(targets_M, weight_VE.shape[0]))
    else:
        rows = _Rows(has_label_M, targets_M.shape[0])
    loss: Tensor = _SegmentedCrossEntropy.apply(
        hidden_ME, weight_VE, targets_M, rows, segment_tokens, softcap, torch.is_grad_enabled()
    )
    return loss


def count_labels(targets: Tensor, vocabulary: int) -> int:
    """How many targets are labels. Raises ValueError for one that is neither in the vocabulary nor -100."""
    has_label = targets != IGNORE
    is_wrong = has_label & ((targets < 0) | (targets >= vocabulary))
    labels, wrong = torch.stack((has_label.sum(), is_wrong.sum())).tolist()
    if wrong:
        raise ValueError(
            f"targets must lie in 0 .. {vocabulary - 1} or be {IGNORE}; got {int(targets.min())} .. "
            f"{int(targets.max())}"
        )
    return int(labels)


class _Rows:
    """The rows that are computed: those that have a label, or all."""

    def __init__(self, has_label_M: Tensor, computed: int) -> None:
        self.computed = computed
        is_everyone = computed == has_label_M.shape[0]
        self._row_L = None if is_everyone else has_label_M.nonzero().squeeze(1)
        place_M = torch.arange(computed, device=has_label_M.device) if is_everyone else has_label_M.cumsum(0) - 1
        self.place_of_row_M = torch.where(has_label_M, place_M, -1)
        """Which of the computed rows each row is; -1 for those without a label."""

    def of(self, x_Mx: Tensor, segment: slice) -> Tensor:
        """Those of a segment of the computed rows."""
        return x_Mx[segment] if self._row_L is None else x_Mx.index_select(0, self._row_L[segment])


class _SegmentedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ME: Tensor,
        weight_VE: Tensor,
        targets_M: Tensor,
        rows: _Rows,
        segment_tokens: int,
        softcap: float | None,
        with_gradient: bool,
    ) -> Tensor:
        needs_hidden, needs_weight = (with_gradient and needed for needed in ctx.needs_input_grad[:2])
        (V, E), L = weight_VE.shape, rows.computed
        precise = torch.promote_types(hidden_ME.dtype, torch.float32)
        loss = hidden_ME.new_zeros((), dtype=precise)
        d_hidden_LE = hidden_ME.new_empty(L, E) if needs_hidden else None
        d_weight_VE = torch.zeros_like(weight_VE, dtype=precise) if needs_weight else None
        row_distance = -(-V // 64) * 64  # rows of logits start at multiples of 128 bytes, whatever the vocabulary
        buffer_SV = hidden_ME.new_empty(min(segment_tokens, L), row_distance)
        buffer_SV[:, V:].zero_()  # a CPU's products in bfloat16 read what lies between the rows, and 0 x NaN is NaN
        buffer_SV = buffer_SV[:, :V]
        for segment in _segments(L, segment_tokens):
            h_SE = rows.of(hidden_ME, segment)
            logits_SV = buffer_SV[: h_SE.shape[0]]
            torch.mm(h_SE, weight_VE.T, out=logits_SV)
            target_S = rows.of(targets_M, segment)
            loss_S = cross_entropy(
                logits_SV, target_S.clamp(min=0), softcap=softcap, with_gradient=needs_hidden or needs_weight
            )
            loss += torch.where(target_S == IGNORE, 0.0, loss_S).sum()
            if d_hidden_LE is not None:
                torch.mm(logits_SV, weight_VE, out=d_hidden_LE[segment])
            if d_weight_VE is not None:
                for chunk in _segments(V, _VOCABULARY_CHUNK):
                    d_weight_VE[chunk] += logits_SV[:, chunk].T @ h_SE
        ctx.save_for_backward(d_hidden_LE, d_weight_VE, rows.place_of_row_M if needs_hidden else None)
        ctx.weight_dtype = weight_VE.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_LE, d_weight_VE, place_of_row_M = ctx.saved_tensors
        (scale,) = grad_outputs
        d_hidden = None if d_hidden_LE is None else _spread(d_hidden_LE, place_of_row_M, scale)
        d_weight = None if d_weight_VE is None else d_weight_VE.mul(scale).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None, None, None, None


def cross_entropy(logits_SV: Tensor, target_S: Tensor, *, softcap: float | None, with_gradient: bool) -> Tensor:
    """Losses of rows, and their gradient over the logits: by the Triton kernel on a GPU, else by its twin."""
    if logits_SV.is_cuda:
        from jenga_kernels import cross_entropy as kernel

        if kernel.supports(logits_SV.dtype):
            return kernel.cross_entropy(logits_SV, target_S, softcap=softcap, with_gradient=with_gradient)
    return reference.cross_entropy(logits_SV, target_S, softcap=softcap, with_gradient=with_gradient)


def _spread(d_hidden_LE: Tensor, place_of_row_M: Tensor, scale: Tensor) -> Tensor:
    """The gradient of all rows, times `scale`: 0 where there is no label."""
    if d_hidden_LE.is_cuda:
        from jenga_kernels import rows as kernel

        if kernel.supports(d_hidden_LE.shape[1], d_hidden_LE.dtype):
            return kernel.take_rows(d_hidden_LE, place_of_row_M, scale=scale)
    return reference.take_rows(d_hidden_LE, place_of_row_M, scale=scale)


def _segments(rows: int, segment_rows: int) -> Iterator[slice]:
    return (slice(first, min(first + segment_rows, rows)) for first in range(0, rows, segment_rows))

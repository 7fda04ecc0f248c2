"""Next-token cross entropy, segment by segment: logits never exist in full (paper, technique 3, peak cutting).

For hidden states h and the head's weight W,

    loss = sum over rows r with a label of  log sum_v exp(h_r . W_v) - h_r . W_target(r)

One segment of rows at a time: its logits are made, give their loss and their gradient

    d loss / d h_r = (softmax(h_r W^T) - onehot(target)) W

and are gone. What is kept for backward is that gradient, as large as h, instead of logits, log-probabilities and their
gradient, each V / E times larger. Rows without a label cost nothing. Gradients are exact; the artifact divides by the
sequence length and takes batch 1 only, here the caller divides by the labels that were counted.

A model that soft-caps its logits z (Gemma) uses c = cap tanh(z / cap) in their place, whose slope 1 - (c / cap)^2 then
multiplies softmax(c) - onehot(target).

Shapes   M rows, E hidden size, V vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""Targets that carry no loss, as everywhere in the field."""


def segmented_cross_entropy(
    hidden: Tensor, weight_VE: Tensor, targets: Tensor, *, segment_tokens: int, softcap: float | None = None
) -> Tensor:
    """Sum (not mean) of next-token losses in nats, a float32 scalar (float64 for float64); 0 when no row has a label.

    Args:
        hidden: ... x E, any float dtype.
        weight_VE: the head's weight; gets a gradient when it requires one.
        targets: ... int64, already shifted: the token that row should predict, or -100.
        segment_tokens: rows whose logits exist at once.
        softcap: bound on the logits; None leaves them as they are.
    """
    hidden_ME, targets_M = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if hidden_ME.shape[0] != targets_M.shape[0]:
        raise ValueError(f"{hidden_ME.shape[0]} hidden rows but {targets_M.shape[0]} targets; one each is needed")
    rows = (targets_M != IGNORE).nonzero().squeeze(1)
    loss: Tensor = _SegmentedCrossEntropy.apply(hidden_ME[rows], weight_VE, targets_M[rows], segment_tokens, softcap)
    return loss


class _SegmentedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ME: Tensor,
        weight_VE: Tensor,
        targets_M: Tensor,
        segment_tokens: int,
        softcap: float | None,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        precise = torch.promote_types(hidden_ME.dtype, torch.float32)
        loss = hidden_ME.new_zeros((), dtype=precise)
        d_hidden_ME = torch.empty_like(hidden_ME) if needs_hidden else None
        d_weight_VE = torch.zeros_like(weight_VE, dtype=precise) if needs_weight else None
        for first in range(0, hidden_ME.shape[0], segment_tokens):
            segment = slice(first, first + segment_tokens)
            h_SE, target_S1 = hidden_ME[segment], targets_M[segment, None]
            logits_SV = (h_SE @ weight_VE.T).to(precise)
            if softcap is not None:
                logits_SV = logits_SV.div_(softcap).tanh_().mul_(softcap)
            lse_S1 = logits_SV.logsumexp(dim=1, keepdim=True)
            loss += (lse_S1 - logits_SV.gather(1, target_S1)).sum()
            if not (needs_hidden or needs_weight):
                continue
            slope_SV = None if softcap is None else 1 - (logits_SV / softcap).square_()
            d_logits_SV = logits_SV.sub_(lse_S1).exp_()
            d_logits_SV.scatter_add_(1, target_S1, torch.full_like(lse_S1, -1.0))
            if slope_SV is not None:
                d_logits_SV.mul_(slope_SV)
            d_logits_SV = d_logits_SV.to(hidden_ME.dtype)
            if d_hidden_ME is not None:
                torch.mm(d_logits_SV, weight_VE, out=d_hidden_ME[segment])
            if d_weight_VE is not None:
                d_weight_VE += (d_logits_SV.T @ h_SE).to(precise)
        ctx.save_for_backward(d_hidden_ME, d_weight_VE)
        ctx.weight_dtype = weight_VE.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden_ME, d_weight_VE = ctx.saved_tensors
        (scale,) = grad_outputs
        return (
            None if d_hidden_ME is None else d_hidden_ME * scale.to(d_hidden_ME.dtype),
            None if d_weight_VE is None else (d_weight_VE * scale).to(ctx.weight_dtype),
            None,
            None,
            None,
        )

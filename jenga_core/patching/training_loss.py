"""The loss of a training forward: next-token cross entropy, in segments, so that logits never exist in full.

It is the mean over the labels of tokens that reached the loss. Under gradient accumulation (transformers passes
`num_items_in_batch`), micro-batches are weighted by all their labels, so that keeping everything equals dense training.

Shapes   B batch, G tokens that may carry loss, E hidden size
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from jenga_core.errors import ConfigError
from jenga_core.loss.segmented_cross_entropy import IGNORE, segmented_cross_entropy
from jenga_core.patching.forwards import is_unobserved
from jenga_core.patching.involvement import Involvement
from jenga_core.patching.parts import Parts

_OF_ANOTHER_LOSS = ("shift_labels", "ignore_index")
_MORE_THAN_A_LOSS = ("output_hidden_states", "output_attentions")


def training_loss(
    hidden_BGE: Tensor,
    involvement: Involvement,
    parts: Parts,
    *,
    segment_tokens: int,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """The loss, a scalar with gradient.

    Args:
        hidden_BGE: what left the decoder of the tokens that may carry loss.
        segment_tokens: rows of logits that exist at once.
        num_items_in_batch: labels of all micro-batches of the optimizer step, as transformers counts them.
    """
    targets_BG, weight = involvement.loss_targets(), parts.head.weight
    is_cast = torch.is_autocast_enabled(hidden_BGE.device.type) and hidden_BGE.dtype != torch.float64
    if is_cast:  # as autocast would the head's product
        dtype = torch.get_autocast_dtype(hidden_BGE.device.type)
        hidden_BGE, weight = hidden_BGE.to(dtype), weight.to(dtype)
    total = segmented_cross_entropy(
        hidden_BGE,
        weight,
        targets_BG,
        segment_tokens=segment_tokens,
        softcap=parts.logit_softcap,
        leave_out=not involvement.has_many_labels,
    )
    loss = total / (targets_BG != IGNORE).sum().clamp(min=1)
    if num_items_in_batch is None:
        return loss
    return loss * (involvement.num_labels / num_items_in_batch)


def check_loss(parts: Parts, given: Mapping[str, Any]) -> None:
    """Raise ConfigError where the model's own forward, given these arguments, would compute another loss, or more."""
    for name in _OF_ANOTHER_LOSS:
        if given.get(name) is not None:
            raise ConfigError(f"{name} is given, but training with Jenga takes the next token's loss", param=name)
    for name in _MORE_THAN_A_LOSS:
        asked = given.get(name)
        if getattr(parts.causal_lm.config, name, False) if asked is None else asked:
            raise ConfigError(f"{name} is asked for, but training with Jenga gives the loss alone", param=name)
    if parts.causal_lm.loss_function is not ForCausalLMLoss:
        raise ConfigError(
            f"the model's loss_function is {parts.causal_lm.loss_function!r}, but Jenga computes transformers' own "
            "cross entropy for causal language models, in segments"
        )
    if not is_unobserved(parts.head):
        raise ConfigError(
            "the language-model head has a hook or a forward of somebody's, which the loss in segments would pass by; "
            "take it away while the model trains"
        )

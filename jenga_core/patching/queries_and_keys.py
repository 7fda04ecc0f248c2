"""The queries and keys of a layer, exactly as its attention would use them, for any architecture.

transformers lets a model's attention function be chosen by name. We register one that attends to nothing and notes the
queries and keys it was given: after projection, adapters, norms and RoPE, by construction. For one call, the attention
module of this instance is told to use it.

Shapes   B batch, H query heads, K key/value heads, T tokens, D head size, E hidden size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from jenga_core.patching.architectures import Architecture

_NAME = "jenga_note_queries_and_keys"


@dataclass(frozen=True)
class QueriesAndKeys:
    """What the attention function was handed."""

    q_BHTD: Tensor
    k_BKTD: Tensor
    scale: float


def queries_and_keys(
    layer: nn.Module, architecture: Architecture, x_BTE: Tensor, layer_arguments: Mapping[str, Any]
) -> QueriesAndKeys:
    """Those of `layer` for the residual stream x, without gradient."""
    attention = getattr(layer, architecture.attention)
    noted: list[QueriesAndKeys] = []
    arguments = {**layer_arguments, "attention_mask": None, "past_key_values": None, "use_cache": False}
    config = attention.config
    attention.config = _WithAttention(config)
    try:
        with torch.no_grad():
            attention(hidden_states=getattr(layer, architecture.attention_norm)(x_BTE), jenga_noted=noted, **arguments)
    finally:
        attention.config = config
    return noted[0]


class _WithAttention:
    """A model config that differs in nothing but the name of the attention function."""

    _attn_implementation = _NAME

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _note(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    jenga_noted: list[QueriesAndKeys],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    jenga_noted.append(QueriesAndKeys(query, key, scale))
    return torch.zeros_like(query.transpose(1, 2)), None


AttentionInterface.register(_NAME, _note)

"""The queries and keys of a layer, exactly as its attention would use them, for any architecture.

transformers lets a model's attention function be chosen by name. We register one that attends to nothing: it stops the
layer and hands back the queries and keys it was given, which by construction are those after the norm (if there is one
before attention), projection, adapters, QK norms and RoPE. For one call, the attention module of this instance is told
to use it.

A model that soft-caps attention scores (Gemma 2) does so after q . k x scale; we score by the uncapped product, which
orders any two pairs alike.

Shapes   B batch, H query heads, K key/value heads, T tokens, D head size, E hidden size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from jenga_core.patching.architectures import Architecture

_NAME = "jenga_take_queries_and_keys"


@dataclass(frozen=True)
class QueriesAndKeys:
    """What the attention function was handed."""

    q_BHTD: Tensor
    k_BKTD: Tensor
    scale: float
    window_tokens: int | None
    """A token sees itself and the window_tokens - 1 before it; None: all before it."""


def queries_and_keys(
    layer: nn.Module, architecture: Architecture, x_BTE: Tensor, layer_arguments: Mapping[str, Any]
) -> QueriesAndKeys:
    """Those of `layer` for the residual stream x, without gradient."""
    attention = getattr(layer, architecture.attention)
    arguments = {**layer_arguments, "attention_mask": None, "past_key_values": None, "use_cache": False}
    config = attention.config
    attention.config = _WithAttention(config)
    try:
        with torch.no_grad():
            layer.forward(x_BTE, **arguments)
    except _Taken as taken:
        return taken.queries_and_keys
    finally:
        attention.config = config
    raise AssertionError(f"{type(layer).__name__} did not call its attention function")


class _Taken(Exception):
    """Ends the layer's forward where there is nothing more to learn from it."""

    def __init__(self, queries_and_keys: QueriesAndKeys) -> None:
        super().__init__()
        self.queries_and_keys = queries_and_keys


class _WithAttention:
    """A model config that differs in nothing but the name of the attention function."""

    _attn_implementation = _NAME

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _take(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> Never:
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    raise _Taken(QueriesAndKeys(query, key, scale, sliding_window))


AttentionInterface.register(_NAME, _take)

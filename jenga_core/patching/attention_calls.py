"""What a layer hands its attention function, and another function in its place, for any architecture.

transformers lets a model's attention function be chosen by name. We register one that asks the module's config what to
do; for the length of a block, the attention module of one instance is given a config that knows. By construction,
queries and keys come after the norm (if there is one before attention), projection, adapters, QK norms and RoPE.

Shapes   B batch, H query heads, G rows, D head size, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Never

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from jenga_core.layers.attention import AttentionCall
from jenga_core.patching.architectures import Architecture

_NAME = "jenga"


def without_masks(decoder: Any) -> AbstractContextManager[None]:
    """While the block runs, `decoder` makes no attention masks; for sequences of real tokens, in which plain causal
    attention is right. transformers finds that out by asking the GPU."""
    return _config(decoder, _WithAttention(decoder.config, None))


def attention_by(
    layer: nn.Module, architecture: Architecture, function: Callable[[AttentionCall], Tensor]
) -> AbstractContextManager[None]:
    """While the block runs, `layer` attends by `function`, which returns B x H x G x D."""
    attention = getattr(layer, architecture.attention)
    return _config(attention, _WithAttention(attention.config, function))


@contextmanager
def _config(module: Any, config: _WithAttention) -> Iterator[None]:
    before, module.config = module.config, config
    try:
        yield
    finally:
        module.config = before


def attention_call(
    layer: nn.Module, architecture: Architecture, x_BGE: Tensor, layer_arguments: Mapping[str, Any]
) -> AttentionCall:
    """What `layer` would hand its attention function for the residual stream x, without gradient."""

    def take(call: AttentionCall) -> Never:
        raise _Taken(call)

    try:
        with torch.no_grad(), attention_by(layer, architecture, take):
            layer.forward(x_BGE, **without_mask(layer_arguments))
    except _Taken as taken:
        return taken.call
    raise AssertionError(f"{type(layer).__name__} did not call its attention function")


def without_mask(layer_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's keyword arguments for an attention function that knows who sees whom, and no cache."""
    return {**layer_arguments, "attention_mask": None, "past_key_values": None, "use_cache": False}


class _Taken(Exception):
    """Ends the layer's forward where there is nothing more to learn from it."""

    def __init__(self, call: AttentionCall) -> None:
        super().__init__()
        self.call = call


class _WithAttention:
    """A model config that differs in nothing but the attention function."""

    _attn_implementation = _NAME

    def __init__(self, config: Any, function: Callable[[AttentionCall], Tensor] | None) -> None:
        self._config = config
        self.loaded_with = config._attn_implementation
        self.jenga_function = function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    config: Any = module.config
    if torch.is_autocast_enabled(query.device.type):  # rotated in float32; autocast would cast what sdpa is given
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (each if each.dtype == torch.float64 else each.to(dtype) for each in (query, key, value))
    if config.loaded_with == "sdpa":
        softcap = None  # transformers' sdpa leaves the cap out, so the model as it was loaded has none
    out_BHGD = config.jenga_function(AttentionCall(query, key, value, scale, sliding_window, softcap, dropout))
    return out_BHGD.transpose(1, 2), None


AttentionInterface.register(_NAME, _call)

"""One row per architecture: the little that the method must know about a model's decoder layer.

The rest is asked of the model itself (`get_decoder`, `get_output_embeddings`), and queries and keys are caught where
the model hands them to its attention function, so rotary variants, QK norms and grouped heads need no row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from jenga_core.errors import UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """Names inside a decoder layer. Its computation must be x + attention(norm(x)), then the MLP alike."""

    layers: str = "layers"
    """The decoder's list of layers."""

    attention: str = "self_attn"
    """The layer's attention module."""

    attention_norm: str = "input_layernorm"
    """The norm before attention."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
}
"""By transformers' `config.model_type`."""

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2")
"""transformers attention functions whose masks the method can take rows and columns of."""


def architecture_of(model_type: str) -> Architecture:
    """The row of a model type. Raises UnsupportedModelError, which lists the supported ones."""
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported; supported are {', '.join(ARCHITECTURES)}", param="model"
        )
    return ARCHITECTURES[model_type]


@dataclass(frozen=True)
class Parts:
    """The modules of one model that the method touches."""

    causal_lm: Any
    """The `...ForCausalLM` inside whatever wraps it."""

    decoder: Any
    layers: tuple[nn.Module, ...]
    head: nn.Linear
    architecture: Architecture


def parts_of(model: nn.Module) -> Parts:
    """Find them in a transformers causal language model, bare or inside a PeftModel. Raises UnsupportedModelError."""
    causal_lm: Any = model
    if hasattr(model, "get_base_model"):
        causal_lm = model.get_base_model()  # type: ignore[operator]  # a PeftModel
    if not hasattr(causal_lm, "get_decoder") or not hasattr(causal_lm, "config"):
        raise UnsupportedModelError(
            f"expected a transformers causal language model or a PeftModel around one, got {type(model).__name__}"
        )
    architecture = architecture_of(causal_lm.config.model_type)
    head = causal_lm.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise UnsupportedModelError(
            f"the language-model head must be a plain nn.Linear without bias, got {type(head).__name__}; "
            "leave it out of the adapter's target modules"
        )
    implementation = causal_lm.config._attn_implementation
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise UnsupportedModelError(
            f"attention implementation {implementation!r} is not supported; load the model with "
            f"attn_implementation set to one of {', '.join(ATTENTION_IMPLEMENTATIONS)}"
        )
    decoder = causal_lm.get_decoder()
    return Parts(causal_lm, decoder, tuple(getattr(decoder, architecture.layers)), head, architecture)

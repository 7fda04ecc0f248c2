"""One row per architecture: the little that the method must know about a model. Torch-free: the service reads it too.

The rest is asked of the model itself. Queries and keys are caught where a layer hands them to its attention function,
and rows go through the layer as it is, so rotary variants, QK norms, grouped heads, sliding windows, soft-capped
attention, fused projections, and norms before, after or around attention and MLP need no row here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jenga_core.config import RopeConfig
from jenga_core.errors import ConfigError, UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """What differs between decoders."""

    layers: str = "layers"
    """The decoder's list of layers. A layer maps the residual stream to the residual stream, token by token but for
    attention."""

    attention: str = "self_attn"
    """The layer's attention module."""

    mlp: str | None = "mlp"
    """The layer's MLP module; None where the layer computes it in its own forward, which cannot be given fewer rows."""

    mlp_down: str = "down_proj"
    """The MLP's last linear layer."""

    adapter_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """The linear layers of attention, which get an adapter unless `lora.target_modules` says otherwise."""

    linears: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """All linear layers of a layer, which may have an adapter."""

    rope_types: tuple[str, ...] = ("linear", "dynamic", "yarn")
    """The `rope.type`s that stretch its context; none where positions are learned, or where transformers refuses."""

    separates_documents: bool = True
    """Without an attention mask given, it keeps documents apart that `position_ids` say are packed into one
    sequence."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "gemma2": Architecture(),
    "gemma3_text": Architecture(),
    "phi3": Architecture(
        adapter_targets=("qkv_proj", "o_proj"),
        linears=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        rope_types=(),
    ),
    "opt": Architecture(
        mlp=None,
        adapter_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        linears=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        rope_types=(),
        separates_documents=False,
    ),
}
"""By transformers' `config.model_type`."""

_HINTS = {"gemma3": "; a Gemma 3 that sees images is not, one of text alone (model type 'gemma3_text') is"}


def architecture_of(model_type: str) -> Architecture:
    """The row of a model type. Raises UnsupportedModelError, which lists the supported ones."""
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
            + _HINTS.get(model_type, ""),
            param="model",
        )
    return ARCHITECTURES[model_type]


def check_targets(model_type: str, targets: Sequence[str] | None) -> None:
    """Raise ConfigError if the architecture has no linear layers of these names."""
    linears = architecture_of(model_type).linears
    if unknown := sorted(set(targets or ()) - set(linears)):
        raise ConfigError(
            f"lora.target_modules {unknown} are no linear layers of a model of type {model_type!r}; these are "
            f"{', '.join(linears)}",
            param="jenga.lora.target_modules",
        )


def check_rope(model_type: str, rope: RopeConfig | None) -> None:
    """Raise ConfigError if the architecture's positions cannot be stretched in this way."""
    types = architecture_of(model_type).rope_types
    if rope is not None and rope.type not in types:
        raise ConfigError(
            f"rope.type {rope.type!r} cannot stretch the positions of a model of type {model_type!r}; "
            + (f"it takes {', '.join(types)}" if types else "nothing can: leave jenga.rope out"),
            param="jenga.rope",
        )

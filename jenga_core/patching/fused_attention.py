"""The attention modules of Llama, Mistral, Qwen 2, Qwen 3 and OPT around their attention function, in lean parts.

    q, k, v = projections of x, one autograd function          q, k normed where the model does that
    q, k turned by their positions, one autograd function      the attention function that the config names
    o = projection of what it returns

OPT turns nothing, and scales q itself; here the attention function does. That is looked up at each call and given what
the module itself would give it, so whoever puts another config into the module (attention_calls.py) is heard.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from jenga_core.layers.lora_linear import Casts, Projection, lora_linears
from jenga_core.layers.rotary import rotary
from jenga_core.patching.projections import projection_of


@dataclass(frozen=True)
class _Form:
    """In what an attention module differs from Llama's."""

    extra_arguments: Callable[[Any], dict[str, Any]] = lambda module: {}
    """What it hands its attention function beside what all do."""
    turns: bool = True
    """Queries and keys are turned by their positions."""
    output: str = "o_proj"
    dropout: str = "attention_dropout"


_FORMS: Mapping[str, _Form] = {
    "llama.modeling_llama.LlamaAttention": _Form(),
    "mistral.modeling_mistral.MistralAttention": _Form(
        lambda module: {"sliding_window": getattr(module.config, "sliding_window", None)}
    ),
    "qwen2.modeling_qwen2.Qwen2Attention": _Form(lambda module: {"sliding_window": module.sliding_window}),
    "qwen3.modeling_qwen3.Qwen3Attention": _Form(lambda module: {"sliding_window": module.sliding_window}),
    "opt.modeling_opt.OPTAttention": _Form(turns=False, output="out_proj", dropout="dropout"),
}
"""By the class in transformers.models."""


def lean_attention(class_name: str, module: Any, casts: Casts) -> Callable[..., Any] | None:
    """The lean forward of an attention module, or None for a class that is not in the table.

    It returns NotImplemented for a call that it does not cover: a projection that is not frozen or adapted plainly,
    angles that are not as wide as a head.
    """
    if class_name not in _FORMS:
        return None
    form = _FORMS[class_name]
    eager = sys.modules[type(module).__module__].eager_attention_forward

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        projections = _projections(module, hidden_states)
        angles = position_embeddings if form.turns else ()
        if projections is None or angles is None or any(angle.shape[-1] != module.head_dim for angle in angles):
            return NotImplemented
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        q, k, v = (y.view(shape) for y in lora_linears(hidden_states, projections, casts))
        q, k = getattr(module, "q_norm", _same)(q), getattr(module, "k_norm", _same)(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if angles:
            q, k = rotary(q, k, *angles)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, module.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
        out, weights = attend(
            module,
            q,
            k,
            v,
            attention_mask,
            dropout=getattr(module, form.dropout) if module.training else 0.0,
            scaling=module.scaling,
            **form.extra_arguments(module),
            **kwargs,
        )
        return getattr(module, form.output)(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights

    return forward


def _projections(module: Any, x: Tensor) -> list[Projection] | None:
    found = [projection_of(linear, x) for linear in (module.q_proj, module.k_proj, module.v_proj)]
    return [projection for projection in found if projection is not None] if all(found) else None


def _same(x: Tensor) -> Tensor:
    return x


def class_name(module: nn.Module) -> str:
    """The module's class, as `llama.modeling_llama.LlamaMLP` where it is of transformers.models."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("transformers.models.")

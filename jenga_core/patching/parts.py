"""The modules of one model that the method touches, and what in its config they cannot do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from jenga_core.errors import UnsupportedModelError
from jenga_core.patching.architectures import Architecture, architecture_of

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2")
"""transformers attention functions whose masks the method can take rows and columns of."""


@dataclass(frozen=True)
class Parts:
    """Found once, when the model is patched or evaluated."""

    causal_lm: Any
    """The `...ForCausalLM` inside whatever wraps it."""

    decoder: Any
    """Its last hidden state is what the head takes: after the last norm, and projected where the model does that."""

    layers: tuple[nn.Module, ...]
    head: nn.Linear
    logit_softcap: float | None
    """Logits z are used as cap x tanh(z / cap)."""

    architecture: Architecture

    @property
    def default_entry_layer(self) -> int:
        """Three fifths of the layers, and from there the first whose attention does not slide; that, if all do."""
        entry = len(self.layers) * 3 // 5
        kinds = getattr(self.causal_lm.config, "layer_types", None) or ["full_attention"] * len(self.layers)
        return next((layer for layer in range(entry, len(self.layers)) if kinds[layer] == "full_attention"), entry)

    def slides_within(self, tokens: int) -> bool:
        """Whether some layer's window is narrower than that."""
        config = self.causal_lm.config
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        return window is not None and window < tokens and (kinds is None or "sliding_attention" in kinds)


def parts_of(model: nn.Module) -> Parts:
    """Find them in a transformers causal language model, bare or inside a PeftModel. Raises UnsupportedModelError."""
    causal_lm: Any = model
    if hasattr(model, "get_base_model"):
        causal_lm = model.get_base_model()  # type: ignore[operator]  # a PeftModel
    if not hasattr(causal_lm, "get_decoder") or not hasattr(causal_lm, "config"):
        raise UnsupportedModelError(
            f"expected a transformers causal language model or a PeftModel around one, got {type(model).__name__}"
        )
    config = causal_lm.config
    architecture = architecture_of(config.model_type)
    head = causal_lm.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise UnsupportedModelError(
            f"the language-model head must be a plain nn.Linear without bias, got {type(head).__name__}; "
            "leave it out of the adapter's target modules"
        )
    _check(config)
    decoder = causal_lm.get_decoder()
    return Parts(
        causal_lm=causal_lm,
        decoder=decoder,
        layers=tuple(getattr(decoder, architecture.layers)),
        head=head,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        architecture=architecture,
    )


def _check(config: Any) -> None:
    implementation = config._attn_implementation
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise UnsupportedModelError(
            f"attention implementation {implementation!r} is not supported; load the model with "
            f"attn_implementation set to one of {', '.join(ATTENTION_IMPLEMENTATIONS)}"
        )
    if implementation == "flash_attention_2" and getattr(config, "sliding_window", None) is not None:
        raise UnsupportedModelError(
            f"the model's sliding window of {config.sliding_window} tokens would be counted in kept tokens by "
            "'flash_attention_2'; load it with attn_implementation='sdpa' or 'eager', whose masks go by position"
        )
    if getattr(config, "use_bidirectional_attention", None):
        raise UnsupportedModelError("use_bidirectional_attention is set: the model attends to later tokens")
    if getattr(config, "layerdrop", 0):
        raise UnsupportedModelError(
            f"layerdrop is {config.layerdrop}: a layer left out at random may be one that selects; "
            "set the model's config.layerdrop to 0"
        )

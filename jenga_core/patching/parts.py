"""The modules of one model that the method touches, and what in its config they cannot do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from jenga_core.config import default_entry_layer
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
    logit_softcap: float | None
    """Logits z are used as cap x tanh(z / cap)."""

    architecture: Architecture

    @property
    def head(self) -> nn.Linear:
        """The language-model head, as it is now: it may be resized or adapted after the model was patched. Raises
        UnsupportedModelError for what the loss cannot take apart."""
        head = self.causal_lm.get_output_embeddings()
        if type(head) is not nn.Linear or head.bias is not None:
            kind = type(head)
            found = "one with a bias" if kind is nn.Linear else f"{kind.__module__}.{kind.__qualname__}"
            raise UnsupportedModelError(
                f"the language-model head must be a plain torch.nn.Linear without bias, got {found}; leave it out of "
                "the adapter's target modules and of modules_to_save"
            )
        return head

    @property
    def default_entry_layer(self) -> int:
        """The layer that chooses where the config names none."""
        return default_entry_layer(len(self.layers), getattr(self.causal_lm.config, "layer_types", None))

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
    _check(config)
    decoder = causal_lm.get_decoder()
    parts = Parts(
        causal_lm=causal_lm,
        decoder=decoder,
        layers=tuple(getattr(decoder, architecture.layers)),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        architecture=architecture,
    )
    parts.head  # noqa: B018 - raises
    return parts


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

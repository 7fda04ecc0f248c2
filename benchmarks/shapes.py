"""The models that are measured, as shapes: random weights, the published sizes. Speed and memory ask for no more.

Sizes are those of the models' own config.json on the hub. Learned positions (OPT) are stretched to the length that is
measured, as fine-tuning beyond 2,048 tokens would have to. OPT's dropout is off for every policy alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    model_type: str
    """transformers' name of the architecture."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    is_gated: bool = True
    """The MLP has a gate beside its up projection: three matrices, not two."""

    is_tied: bool = False
    """The head is the embedding."""

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """Attention's linear layers, which get an adapter: q, k, v, o."""
        return ("q_proj", "k_proj", "v_proj", "out_proj" if self.model_type == "opt" else "o_proj")

    def config_fields(self, tokens: int) -> dict[str, Any]:
        """Fields of the transformers config for sequences of `tokens` tokens."""
        fields: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": tokens,
            "tie_word_embeddings": self.is_tied,
        }
        if self.model_type == "opt":
            return {
                **fields,
                "ffn_dim": self.intermediate,
                "word_embed_proj_dim": self.hidden,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            }
        return {
            **fields,
            "intermediate_size": self.intermediate,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_size,
        }


_LLAMA_2_7B = Shape("llama", 32000, 4096, 11008, 32, 32, 32, 128)
_OPT_6_7B = Shape("opt", 50272, 4096, 16384, 32, 32, 32, 128, is_gated=False, is_tied=True)

SHAPES: Mapping[str, Shape] = {
    "llama-3-8b": replace(_LLAMA_2_7B, vocabulary=128256, intermediate=14336, key_heads=8),
    "llama-2-7b": _LLAMA_2_7B,
    "qwen3-8b": Shape("qwen3", 151936, 4096, 12288, 36, 32, 8, 128),
    "opt-6.7b": _OPT_6_7B,
    "opt-1.3b": replace(_OPT_6_7B, hidden=2048, intermediate=8192, layers=24, head_size=64),
    "smollm2-135m": Shape("llama", 49152, 576, 1536, 30, 9, 3, 64, is_tied=True),
    "tiny": Shape("llama", 512, 64, 128, 4, 4, 2, 16),
    "tiny-opt": Shape("opt", 512, 64, 128, 4, 4, 4, 16, is_gated=False, is_tied=True),
}
"""By the name used in results; `tiny` ones are for trying the benchmark on a CPU."""


def make_model(shape: Shape, tokens: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A frozen model with random weights, made on `device` in one pass over them: seconds for 8B on a GPU."""
    config = AutoConfig.for_model(shape.model_type, **shape.config_fields(tokens))
    with device, no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    for module in model.modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            elif is_norm:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False)

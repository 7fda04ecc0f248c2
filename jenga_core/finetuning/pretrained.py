"""Load a base model and its tokenizer from a local folder, for training on this machine's device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError
from jenga_core.patching.architectures import architecture_of, check_rope


def training_device() -> torch.device:
    """The first CUDA device that this process can see, else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path, config: JengaConfig, device: torch.device) -> PreTrainedModel:
    """The model with frozen weights: bfloat16 on a GPU, float32 on a CPU, whose bfloat16 products are slow.

    Raises:
        ConfigError: the context is longer than the model's own and no rope setting stretches it.
    """
    model_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    stretch_positions(model_config, config)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        config=model_config,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        attn_implementation=_attention_for(model_config),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.requires_grad_(False)
    return model.to(device)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return tokenizer


def _attention_for(model_config: Any) -> str:
    """sdpa, but eager where attention scores are soft-capped (Gemma 2): sdpa would drop the cap without a word."""
    return "eager" if getattr(model_config, "attn_logit_softcapping", None) is not None else "sdpa"


def stretch_positions(model_config: Any, config: JengaConfig) -> None:
    """Write the rope setting into the model's config, or refuse a context that the model cannot take.

    Where sliding layers have rotary angles of their own (Gemma 3), those stay: inside of a window, distances are as
    short as ever.
    """
    check_rope(model_config.model_type, config.rope)
    own = int(model_config.max_position_embeddings)
    wanted = config.context_length_tokens
    if config.rope is None:
        if wanted > own:
            remedy = ""
            if architecture_of(model_config.model_type).rope_types:
                factor = max(2.0, -(-wanted // own))
                remedy = f'set jenga.rope, for example {{"type": "yarn", "factor": {factor:.1f}}}, or '
            raise ConfigError(
                f"context_length_tokens is {wanted}, but the model takes {own}; {remedy}ask for at most {own}",
                param="jenga.context_length_tokens",
            )
        return
    if wanted > own * config.rope.factor:
        raise ConfigError(
            f"context_length_tokens is {wanted}, but rope.factor {config.rope.factor} stretches the model's {own} "
            f"only to {int(own * config.rope.factor)}",
            param="jenga.rope.factor",
        )
    by_layer_type = model_config.rope_parameters or {}
    rope = by_layer_type.get("full_attention", by_layer_type)
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(
            f"the model's positions are stretched already, by {rope['rope_type']!r} to {own}; leave jenga.rope out",
            param="jenga.rope",
        )
    rope = {**rope, "rope_type": config.rope.type, "factor": config.rope.factor}
    if config.rope.type == "yarn":
        rope["original_max_position_embeddings"] = own
    nested = "full_attention" in by_layer_type
    model_config.rope_parameters = {**by_layer_type, "full_attention": rope} if nested else rope
    if config.rope.type != "dynamic":  # dynamic NTK computes its base from the unstretched length
        model_config.max_position_embeddings = int(own * config.rope.factor)

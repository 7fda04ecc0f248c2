"""Small random models of every supported type, and batches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 256

WINDOW = 20
"""Tokens that a sliding layer sees: fewer than a batch has, and no multiple of a block."""

_SLIDING_AND_FULL = {
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 5,
    "tie_word_embeddings": False,
}
_OPT = {"ffn_dim": 48, "dropout": 0.0}

_MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {**_SLIDING_AND_FULL, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.5},
    ),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM, _SLIDING_AND_FULL),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"sliding_window": WINDOW}),
    "opt": (OPTConfig, OPTForCausalLM, _OPT),
    "opt-post-norm": (OPTConfig, OPTForCausalLM, {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 24}),
}
MODEL_TYPES = tuple(_MODELS)
"""One for every row of the table of architectures, and OPT in its other form (that of opt-350m)."""


def tiny_model(
    model_type: str = "llama", *, attention: str = "sdpa", layers: int = 4, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Four layers, four query heads over two key heads, float32, in train mode."""
    config_class, model_class, own = _MODELS[model_type]
    arguments: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **own,
        **overrides,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class._from_config(config_class(**arguments), attn_implementation=attention)
    for name, parameter in model.named_parameters():  # random initialisation is too flat to tell tokens apart
        if parameter.dim() == 2 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.train()


def tiny_batch(batch: int = 3, tokens: int = 77, *, seed: int = 1, padded: bool = True) -> dict[str, torch.Tensor]:
    """Token ids, labels on all real tokens, and right padding of different lengths (row 0 has none)."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    if padded:
        for row in range(1, batch):
            attention_mask[row, tokens - 17 * row :] = 0
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with a chat template; like SmolLM2's, it pads with its end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 3]
    vocabulary = {"<unk>": 0, "<s>": 1, "<end>": 2} | {letter: index + 3 for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return fast


def save_tiny_model(folder: Path, **overrides: Any) -> Path:
    """A folder that `jenga models add` takes: weights, config, tokenizer."""
    tiny_model(**overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder

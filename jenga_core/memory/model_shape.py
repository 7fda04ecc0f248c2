"""What of a model decides how much memory it needs, read from its config.json. Torch-free: the API asks too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jenga_core.errors import ConfigError

FULL_ATTENTION_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""Of model types whose other layers' attention slides, where config.json does not say which."""


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides how much memory it needs."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    parameters: int
    layer_types: tuple[str, ...] | None = None
    """As transformers names them; None: no layer's attention slides."""

    @property
    def widths(self) -> Mapping[str, int]:
        """By the letters of the formula."""
        return {
            "E": self.hidden,
            "Q": self.heads * self.head_size,
            "K": self.kv_heads * self.head_size,
            "F": self.intermediate,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, parameters: int | None = None) -> ModelShape:
        """From a model folder's config.json; `parameters` is counted from the shapes unless given.

        Raises:
            ConfigError: a field is missing or no number; it is named.
        """

        def number(*names: str, default: int | None = None) -> int:
            for name in names:
                if (value := config.get(name)) is not None:
                    if not isinstance(value, int) or value <= 0:
                        raise ConfigError(f"config.json: {name} must be a positive number, got {value!r}")
                    return value
            if default is None:
                raise ConfigError(f"config.json has no {' and no '.join(names)}; its memory cannot be estimated")
            return default

        hidden, heads = number("hidden_size"), number("num_attention_heads")
        head_size = number("head_dim", default=hidden // heads)
        kv_heads = number("num_key_value_heads", default=heads)
        intermediate, layers = number("intermediate_size", "ffn_dim"), number("num_hidden_layers")
        vocabulary = number("vocab_size")
        model_type = str(config.get("model_type", ""))
        gated = "ffn_dim" not in config
        if parameters is None:
            attention = 2 * hidden * head_size * (heads + kv_heads)
            mlp = (3 if gated else 2) * hidden * intermediate
            tied = config.get("tie_word_embeddings", model_type in ("opt", "gemma2", "gemma3_text"))
            embeddings = vocabulary * hidden * (1 if tied else 2)
            parameters = embeddings + layers * (attention + mlp + 2 * hidden) + hidden
        layer_types = _layer_types(config, model_type, layers)
        return cls(
            model_type, hidden, intermediate, layers, heads, kv_heads, head_size, vocabulary, parameters, layer_types
        )

    @classmethod
    def from_folder(cls, folder: Path, *, parameters: int | None = None) -> ModelShape:
        """From the config.json inside. Raises ConfigError."""
        return cls.from_config(config_of_folder(folder), parameters=parameters)


def config_of_folder(folder: Path) -> dict[str, Any]:
    """The config.json inside. Raises ConfigError where there is none, or no JSON object in it."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def _layer_types(config: Mapping[str, Any], model_type: str, layers: int) -> tuple[str, ...] | None:
    """Named in the config, or every n-th full, as transformers reads older ones."""
    if isinstance(named := config.get("layer_types"), list) and len(named) == layers:
        return tuple(map(str, named))
    every = config.get("sliding_window_pattern", FULL_ATTENTION_EVERY.get(model_type))
    if not isinstance(every, int) or every < 1:
        return None
    return tuple("sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers))

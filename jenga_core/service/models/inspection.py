"""What a model folder holds, read without a model stack: config.json, and the header of every safetensors file.

A safetensors file is the header's length (8 bytes, little endian), the header (JSON: name to dtype, shape, offsets) and
the tensors' bytes.

The fingerprint is a SHA-256 over the config and over every tensor's name, dtype, shape and bytes, ordered by name. How
tensors are spread over files, what the files are called, and where the folder came from do not change it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jenga_core.errors import ConfigError
from jenga_core.memory.model_shape import config_of_folder
from jenga_core.patching.architectures import architecture_of

_INCIDENTAL = ("transformers_version", "torch_dtype", "dtype", "use_cache")
"""Config keys that say how a model was saved, not what it computes; so do those that start with an underscore."""

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    """Offset in the file, in bytes."""
    size: int
    """In bytes."""


def inspect_folder(folder: Path) -> dict[str, Any]:
    """The columns of `base_models` that the folder itself answers.

    Raises:
        ConfigError: names the file that is wrong.
        UnsupportedModelError: names the supported architectures.
    """
    config = config_of_folder(folder)
    model_type = _field(config, "model_type", str)
    architecture_of(model_type)
    tensors = [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in _tensors(path)]
    if not tensors:
        raise ConfigError(f"{folder} holds no *.safetensors file with tensors")
    return {
        "model_type": model_type,
        "num_hidden_layers": _field(config, "num_hidden_layers", int),
        "context_length_tokens": _field(config, "max_position_embeddings", int),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "fingerprint": _fingerprint(config, tensors),
    }


def _field(config: dict[str, Any], key: str, kind: type) -> Any:
    value = config.get(key)
    if not isinstance(value, kind):
        raise ConfigError(f"config.json: {key} must be {kind.__name__}, got {value!r}; this model cannot be added")
    return value


def _tensors(path: Path) -> Iterator[_Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ConfigError(f"{path.name} is not a safetensors file: a header of {length} bytes in a file of {size}")
        header = file.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"{name} lies outside of the file")
            yield _Tensor(name, entry["dtype"], tuple(entry["shape"]), path, 8 + length + begin, end - begin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path.name} is not a complete safetensors file: {error}") from error


def _fingerprint(config: dict[str, Any], tensors: list[_Tensor]) -> str:
    essential = {key: value for key, value in config.items() if key not in _INCIDENTAL and not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(essential, sort_keys=True).encode())
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        with tensor.path.open("rb") as file:
            file.seek(tensor.start)
            left = tensor.size
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()

"""Predictors on disk: a folder with the weights and with what they may be used for.

    predictors.safetensors   the weights of all layers, float32
    predictors.json          {"format": 2, "fingerprint": ..., "settings": {...}, "layers": {"15": {...}}}

Predictors fit one base model (its fingerprint) and the settings that exact scores depend on; anything else is refused
with the difference. Keys of the JSON that this version does not know are left alone and handed back in `extra`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError
from jenga_core.prediction.predictor import LayerPredictor, Predictors
from jenga_core.prediction.training import LayerReport

FORMAT = 2
WEIGHTS, DESCRIPTION = "predictors.safetensors", "predictors.json"


class PredictorsMismatch(ConfigError):
    """The folder's predictors are not for this model or these settings, or the folder is damaged."""

    code = "predictors_mismatch"


@dataclass(frozen=True)
class Stored:
    """What a folder holds."""

    predictors: Predictors
    fingerprint: str
    settings: Mapping[str, Any]
    reports: Mapping[int, LayerReport]
    """By layer."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of the JSON."""

    @property
    def lowest_recall(self) -> float:
        """Of the layer that is predicted worst."""
        return min(report.recall for report in self.reports.values())


def settings_of(config: JengaConfig, layers: Sequence[int]) -> dict[str, Any]:
    """What predictors depend on beside the base model, as JSON has it: the layers that select, how blocks are cut,
    pooled and chosen, how long the sequences are and how their positions are stretched, and how training went."""
    selection = config.selection
    return {
        "layers": list(layers),
        "block_tokens": selection.block_tokens,
        "column": selection.column,
        "asked_by": selection.asked_by,
        "target_fraction": selection.target_fraction,
        "keep_fraction": selection.keep_fraction,
        "context_length_tokens": config.context_length_tokens,
        "rope": config.rope.model_dump(mode="json") if config.rope else None,
        **config.predictor.model_dump(mode="json", exclude={"min_recall"}),
    }


def folder_name(settings: Mapping[str, Any]) -> str:
    """The same name for the same settings: 16 hex digits."""
    canonical = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def save(folder: Path, stored: Stored) -> None:
    """Write both files into `folder`, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    predictors = stored.predictors
    save_file({name: tensor.contiguous().cpu() for name, tensor in predictors.state_dict().items()}, folder / WEIGHTS)
    layers = {
        str(layer): {"shape": _shape(predictors[layer]), "report": stored.reports[layer].as_dict()}
        for layer in predictors.layers
    }
    description = {
        **stored.extra,
        "format": FORMAT,
        "fingerprint": stored.fingerprint,
        "settings": dict(stored.settings),
        "layers": layers,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load(
    folder: Path, *, fingerprint: str, settings: Mapping[str, Any] | None = None, hidden_size: int | None = None
) -> Stored:
    """Read a folder for the base model of this fingerprint; None for settings or hidden size takes any.

    Raises:
        PredictorsMismatch: the files are damaged, of another format, or for another model, settings or hidden size.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise PredictorsMismatch(f"{folder} has format {description['format']!r}; this version reads {FORMAT}")
        _compare(folder, "fingerprint", description["fingerprint"], fingerprint)
        for name, wanted in (settings or {}).items():
            _compare(folder, name, description["settings"].get(name), wanted)
        predictors, reports = {}, {}
        for layer, entry in description["layers"].items():
            if hidden_size is not None:
                _compare(folder, "hidden_size", entry["shape"]["hidden_size"], hidden_size)
            predictors[int(layer)] = LayerPredictor(**entry["shape"])
            reports[int(layer)] = LayerReport(**entry["report"])
        model = Predictors(predictors)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, PredictorsMismatch):
            raise
        raise PredictorsMismatch(f"{folder} holds no usable predictors: {error}") from error
    model.eval().requires_grad_(False)
    known = {"format", "fingerprint", "settings", "layers"}
    extra = {name: value for name, value in description.items() if name not in known}
    return Stored(model, fingerprint, description["settings"], reports, extra)


def _shape(predictor: LayerPredictor) -> dict[str, Any]:
    """The arguments that make an empty one."""
    return {
        "hidden_size": predictor.hidden_size,
        "query_heads": predictor.query_heads,
        "key_heads": predictor.key_heads,
        "head_size": predictor.head_size,
        "query_hidden": list(predictor.query.hidden),
        "key_hidden": list(predictor.key.hidden),
        "scale": predictor.scale,
        "window_tokens": predictor.window_tokens,
    }


def _compare(folder: Path, name: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise PredictorsMismatch(
            f"the predictors in {folder} are for {name} {got!r}, this run has {wanted!r}; train new ones"
        )

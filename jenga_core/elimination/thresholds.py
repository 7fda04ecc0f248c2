"""Layer-specific thresholds (paper, Algorithm 1): how low may a block score and still be computed?

A threshold starts at the layer's mean block score over calibration data. Then, layer by layer, a finite-difference step
climbs held-out next-token accuracy:

    G_i  = (acc(T_i + eps) - acc(T_i - eps)) / (2 eps)
    T_i += eta G_i

Scores of different layers differ by orders of magnitude, so we measure T_i, eps and eta in units of the layer's initial
threshold: t_i = T_i / T_i(0), which makes one eps and one eta serve all layers. A negative threshold would mean nothing
(scores are not negative), so t_i stays at or above 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jenga_core.errors import ConfigError

Accuracy = Callable[[Mapping[int, float]], float]
"""Held-out next-token accuracy in [0, 1] of the sparse model under these thresholds."""


@dataclass(frozen=True)
class Thresholds:
    """One threshold per layer that selects."""

    by_layer: Mapping[int, float]
    """Layer index to block score; blocks below it are not kept."""

    initial_by_layer: Mapping[int, float]
    """The mean block scores that the search began with."""

    accuracy_before: float
    """With the initial thresholds."""

    accuracy_after: float

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Thresholds:
        """What `save` wrote. Raises ConfigError when the file is not that."""
        try:
            fields = json.loads(path.read_text())
            for name in ("by_layer", "initial_by_layer"):
                fields[name] = {int(layer): float(value) for layer, value in fields[name].items()}
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} holds no thresholds: {error}") from error

    def of_layer(self, layer: int) -> float:
        """Raises ConfigError naming the layers there are."""
        if layer not in self.by_layer:
            raise ConfigError(
                f"no threshold for layer {layer}; there are some for layers {sorted(self.by_layer)}: calibrate again "
                "under this config"
            )
        return self.by_layer[layer]


def search(
    initial_by_layer: Mapping[int, float],
    accuracy: Accuracy,
    *,
    sweeps: int,
    epsilon: float,
    eta: float,
    sweep_done: Callable[[int], None] = lambda sweep: None,
) -> Thresholds:
    """Algorithm 1: `sweeps` passes over the layers in order, two accuracies per layer and pass.

    Args:
        initial_by_layer: mean block score of each layer that selects.
        epsilon: half the finite difference, in units of a layer's initial threshold.
        eta: step size: how many initial thresholds to move per unit of dacc/dt.
        sweep_done: called after each pass, with its number from 1.
    """
    thresholds = dict(initial_by_layer)
    accuracy_before = accuracy(thresholds)
    for sweep in range(1, sweeps + 1):
        for layer, unit in initial_by_layer.items():
            step = epsilon * unit
            higher = accuracy({**thresholds, layer: thresholds[layer] + step})
            lower = accuracy({**thresholds, layer: max(thresholds[layer] - step, 0.0)})
            slope = (higher - lower) / (2 * epsilon)
            thresholds[layer] = max(thresholds[layer] + eta * slope * unit, 0.0)
        sweep_done(sweep)
    return Thresholds(thresholds, dict(initial_by_layer), accuracy_before, accuracy(thresholds))

"""Algorithm 1 on accuracies whose best thresholds are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from jenga_core.elimination.thresholds import Thresholds, search
from jenga_core.errors import ConfigError

BEST = {3: 15.0, 7: 0.05}
INITIAL = {3: 10.0, 7: 0.1}


def accuracy(by_layer: Mapping[int, float]) -> float:
    """Falls with the squared distance from BEST, each layer in its own unit."""
    return 0.5 - sum(((by_layer[layer] - BEST[layer]) / INITIAL[layer]) ** 2 for layer in BEST) / 10


def test_the_search_climbs_each_layer_in_its_own_unit() -> None:
    found = search(INITIAL, accuracy, sweeps=20, epsilon=0.25, eta=2.0)
    assert found.initial_by_layer == INITIAL
    assert found.accuracy_before == pytest.approx(0.45)
    assert found.accuracy_after > 0.499
    for layer, best in BEST.items():
        assert found.of_layer(layer) == pytest.approx(best, rel=0.1)


def test_one_step_is_the_papers_formula() -> None:
    found = search({3: 10.0}, lambda t: 0.3 + 0.02 * t[3] / 10.0, sweeps=1, epsilon=0.25, eta=5.0)
    assert found.of_layer(3) == pytest.approx(10.0 + 5.0 * 0.02 * 10.0)


def test_no_sweep_keeps_the_means_and_a_threshold_never_becomes_negative() -> None:
    assert search(INITIAL, accuracy, sweeps=0, epsilon=0.25, eta=1.0).by_layer == INITIAL
    falling = search({0: 1.0}, lambda t: -t[0], sweeps=3, epsilon=0.25, eta=10.0)
    assert falling.of_layer(0) == 0.0


def test_every_sweep_is_told() -> None:
    sweeps: list[int] = []
    search({0: 1.0}, lambda by_layer: 0.5, sweeps=3, epsilon=0.1, eta=1.0, sweep_done=sweeps.append)
    assert sweeps == [1, 2, 3]


def test_each_layer_and_sweep_costs_two_accuracies() -> None:
    asked = []
    search(INITIAL, lambda t: float(len(asked.append(t) or asked)), sweeps=3, epsilon=0.1, eta=0.1)
    assert len(asked) == 2 * 2 * 3 + 2  # and one before, one after


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = search(INITIAL, accuracy, sweeps=2, epsilon=0.25, eta=1.0)
    found.save(tmp_path / "thresholds.json")
    assert Thresholds.load(tmp_path / "thresholds.json") == found
    (tmp_path / "bad.json").write_text('{"by_layer": {"x": 1}}')
    with pytest.raises(ConfigError, match=r"bad\.json holds no thresholds"):
        Thresholds.load(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match=r"no threshold for layer 4; there are some for layers \[3, 7\]"):
        found.of_layer(4)

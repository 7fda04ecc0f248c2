"""Predictors come back from disk as they were, and only for what they were made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jenga_core.prediction import store
from jenga_core.prediction.store import PredictorsMismatch, Stored
from tests.prediction.conftest import Trained, config

FINGERPRINT = "ab" * 32


@pytest.fixture
def saved(tmp_path: Path, trained: Trained) -> Stored:
    predictors, reports = trained
    stored = Stored(predictors, FINGERPRINT, store.settings_of(config(), [2]), reports, {"thresholds": {"2": 0.5}})
    store.save(tmp_path / "predictors", stored)
    return stored


def test_round_trip(tmp_path: Path, saved: Stored) -> None:
    again = store.load(tmp_path / "predictors", fingerprint=FINGERPRINT, settings=saved.settings, hidden_size=32)
    for name, tensor in saved.predictors.state_dict().items():
        assert torch.equal(again.predictors.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in again.predictors.parameters())
    assert (again.settings, again.extra) == (saved.settings, {"thresholds": {"2": 0.5}})
    assert again.reports[2].recall == saved.reports[2].recall == again.lowest_recall
    assert again.predictors[2].window_tokens is None


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"fingerprint": "cd" * 32}, "are for fingerprint 'abab.*, this run has 'cdcd"),
        ({"hidden_size": 64}, "are for hidden_size 32, this run has 64"),
        ({"settings": {"block_tokens": 64}}, "are for block_tokens 8, this run has 64; train new ones"),
        ({"settings": {"layers": [2, 3]}}, r"are for layers \[2\], this run has \[2, 3\]"),
        ({"settings": {"rope": {"type": "yarn"}}}, "are for rope None"),
    ],
)
def test_what_they_are_not_for(tmp_path: Path, saved: Stored, wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(PredictorsMismatch, match=says):
        store.load(tmp_path / "predictors", **{"fingerprint": FINGERPRINT, **wanted})


@pytest.mark.parametrize(
    "damage", ["no folder", "cut weights", "no JSON", "another format", "other shapes", "key gone"]
)
def test_damage_is_told(tmp_path: Path, saved: Stored, damage: str) -> None:
    folder = tmp_path / "predictors"
    weights, description = folder / store.WEIGHTS, folder / store.DESCRIPTION
    fields = json.loads(description.read_text())
    match damage:
        case "no folder":
            folder = tmp_path / "nowhere"
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no JSON":
            description.write_text("{")
        case "another format":
            description.write_text(json.dumps({**fields, "format": 1}))
        case "other shapes":
            fields["layers"]["2"]["shape"]["head_size"] = 2
            description.write_text(json.dumps(fields))
        case "key gone":
            del fields["layers"]
            description.write_text(json.dumps(fields))
    says = "has format 1; this version reads 2" if damage == "another format" else "holds no usable predictors"
    with pytest.raises(PredictorsMismatch, match=says):
        store.load(folder, fingerprint=FINGERPRINT)


def test_folders_are_named_by_what_matters() -> None:
    name = store.folder_name(store.settings_of(config(), [2]))
    assert name == store.folder_name(store.settings_of(config(score="predicted", loss_on="all"), [2]))
    others = [
        store.settings_of(config(), [3]),
        store.settings_of(config(keep_fraction=0.3), [2]),
        store.settings_of(config(column="sum"), [2]),
        {**store.settings_of(config(), [2]), "steps": 17},
    ]
    assert len({name, *map(store.folder_name, others)}) == 5

"""A tiny model, text whose blocks differ, and predictors trained on them once for all tests that need some."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning.data import PadRight
from jenga_core.finetuning.predictors import train_predictors
from jenga_core.prediction.predictor import Predictors
from jenga_core.prediction.training import LayerReport
from tests.support.tiny import tiny_model

BLOCK_TOKENS = 8

Trained = tuple[Predictors, dict[int, LayerReport]]


def config(*, steps: int = 150, **selection: Any) -> JengaConfig:
    """Scores alone decide, unless the test says otherwise."""
    predictor = {"hidden": 24, "head_size": 4, "steps": steps}
    alone = {"block_tokens": BLOCK_TOKENS, "target_fraction": 0.0, "asked_by": "all"}
    return JengaConfig.preset("jenga", selection={**alone, **selection}, predictor=predictor)


def sequences(count: int = 64, tokens: int = 128) -> list[dict[str, Any]]:
    """Every block repeats one of 15 words."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        words = torch.randint(3, 18, (tokens // BLOCK_TOKENS,), generator=generator)
        ids = words.repeat_interleave(BLOCK_TOKENS).tolist()
        made.append({"input_ids": ids, "labels": ids})
    return made


def train(settings: JengaConfig, *, count: int = 64, seed: int = 0) -> Trained:
    handle = apply_jenga(tiny_model(), settings)
    return train_predictors(handle, sequences(count), PadRight(0), seed=seed)


@pytest.fixture(scope="session")
def trained() -> Trained:
    """For the carried selection at layer 2 of 4."""
    return train(config())

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


def config(*, steps: int = 200, **selection: Any) -> JengaConfig:
    predictor = {"hidden": 64, "rank": 16, "steps": steps, "learning_rate": 5e-3}
    return JengaConfig.preset("jenga", selection={"block_tokens": BLOCK_TOKENS, **selection}, predictor=predictor)


def sequences(count: int = 48, tokens: int = 128) -> list[dict[str, Any]]:
    """Every block speaks one of 15 dialects of 16 words."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        dialect = torch.randint(0, 15, (tokens // BLOCK_TOKENS, 1), generator=generator)
        words = torch.randint(0, 16, (tokens // BLOCK_TOKENS, BLOCK_TOKENS), generator=generator)
        ids = (3 + dialect * 16 + words).flatten().tolist()
        made.append({"input_ids": ids, "labels": ids})
    return made


def train(settings: JengaConfig, *, count: int = 48, seed: int = 0) -> Trained:
    handle = apply_jenga(tiny_model(), settings)
    return train_predictors(handle, sequences(count), PadRight(0), seed=seed)


@pytest.fixture(scope="session")
def trained() -> Trained:
    """For the carried selection at layer 2 of 4."""
    return train(config())

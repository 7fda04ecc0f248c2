"""A predictor starts as the layer itself: exactly where it has room, and at the speeds of the layer's own RoPE."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning.data import PadRight
from jenga_core.finetuning.predictors import train_predictors
from jenga_core.prediction.start import Projections, start, unrotated
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("turns", [8, 4])
@pytest.mark.parametrize("stretch", [1.0, 1.3])
def test_unrotated_undoes_rope(turns: int, stretch: float) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(2, 3, 10, 8, generator=generator)
    speed = torch.tensor([1.0, 0.3, 0.01, 0.0001])[: turns // 2]
    angle = torch.arange(5.0, 15.0)[:, None] * torch.cat([speed, speed])
    cos, sin = angle.cos()[None] * stretch, angle.sin()[None] * stretch
    turned, still = before.split([turns, 8 - turns], dim=3)
    half = torch.cat([-turned[..., turns // 2 :], turned[..., : turns // 2]], dim=3)
    after = torch.cat([turned * cos[:, None] + half * sin[:, None], still], dim=3)
    found, found_speed = unrotated(after, (cos, sin))
    expected = torch.cat(
        [
            turned[..., : turns // 2],
            still[..., : (8 - turns) // 2],
            turned[..., turns // 2 :],
            still[..., (8 - turns) // 2 :],
        ],
        dim=3,
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_speed[: turns // 2], speed, rtol=1e-3, atol=1e-6)
    assert found_speed[turns // 2 :].tolist() == [0.0] * (4 - turns // 2)


def test_nothing_turns_without_position_embeddings() -> None:
    vectors = torch.randn(1, 2, 3, 4)
    same, speed = unrotated(vectors, None)
    assert torch.equal(same, vectors)
    assert speed.tolist() == [0.0, 0.0]


def projections(tokens: int = 400) -> Projections:
    """Four query heads over two key heads of a layer whose second rotary pair counts for nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 12, generator=generator)
    q = (x @ torch.randn(12, 16, generator=generator)).view(tokens, 4, 4)
    k = (x @ torch.randn(12, 8, generator=generator)).view(tokens, 2, 4)
    q[:, :, [1, 3]] *= 0.05
    return Projections(x, q, k, torch.tensor([0.5, 0.1]), 0.25, None)


def test_with_room_enough_it_is_the_layer() -> None:
    given = projections()
    predictor = start(given, head_size=4, hidden=40)
    torch.testing.assert_close(predictor.query(given.x_PE).view(400, 4, 2, 2).sort(dim=3).values,
                               given.q_PHD.view(400, 4, 2, 2).sort(dim=3).values, rtol=1e-3, atol=1e-3)  # fmt: skip
    assert predictor.scale == 0.25
    assert predictor.head_size == 4


def test_the_pairs_that_count_are_kept() -> None:
    given = projections()
    predictor = start(given, head_size=2, hidden=16)
    assert predictor.speed_KC.tolist() == [[0.5], [0.5]]
    made = predictor.query(given.x_PE).view(400, 4, 2)
    torch.testing.assert_close(made, given.q_PHD[:, :, [0, 2]], rtol=1e-3, atol=1e-3)


def test_a_head_smaller_than_asked_for_keeps_its_size() -> None:
    assert start(projections(), head_size=64, hidden=16).head_size == 4


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "opt", "mistral"])
def test_every_architecture_is_recalled_from_the_start(model_type: str) -> None:
    """One step of training, so that what is measured is the start. Where heads are normed one by one, which is not
    linear, training has to help. Random
    weights ask alike of all blocks at one distance, so the column is the mean."""
    has_head_norms = model_type in ("qwen3", "gemma3_text")
    settings: dict[str, Any] = {"hidden": 128, "head_size": 8, "steps": 1, "learning_rate": 1e-6}
    if has_head_norms:
        settings.update(steps=60, learning_rate=2e-3)
    selection = {"block_tokens": 8, "target_fraction": 0.0, "asked_by": "all", "column": "mean"}
    handle = apply_jenga(tiny_model(model_type), JengaConfig.preset("jenga", selection=selection, predictor=settings))
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 256, (128,), generator=generator).tolist() for _ in range(32)]
    sequences = [{"input_ids": each, "labels": each} for each in ids]
    _, reports = train_predictors(handle, sequences, PadRight(0), seed=0)
    (report,) = reports.values()
    assert report.chance < 0.5
    assert report.recall > (0.5 if has_head_norms else 0.8), report

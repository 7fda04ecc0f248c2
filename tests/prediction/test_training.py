"""Predictors learn, the same way every time, and the report tells the truth."""

from __future__ import annotations

import pytest
import torch

from jenga_core import apply_jenga
from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.errors import DataError
from jenga_core.finetuning.data import PadRight
from jenga_core.finetuning.predictors import train_predictors
from jenga_core.prediction.predictor import LayerPredictor
from jenga_core.prediction.training import Sample, measure
from tests.prediction.conftest import Trained, config, sequences, train
from tests.support.tiny import tiny_model


def test_recall_is_far_above_chance_on_held_out_sequences(trained: Trained) -> None:
    predictors, reports = trained
    report = reports[2]
    assert predictors.layers == (2,)
    assert report.chance == pytest.approx(5 / 14)  # 16 blocks, 7 kept; first and last are forced
    assert report.held_out_blocks == 5 * 8
    assert 0.55 <= report.recall <= 0.95  # a wrong target or a shuffled block falls to chance
    assert report.precision == report.recall
    assert report.recall < report.score_share < 1
    assert abs(report.recent - report.chance) < 0.2  # these words come in no order
    assert report.parameters == predictors.num_parameters
    assert report.query_hidden == predictors[2].query.hidden
    assert max(report.query_hidden + report.key_hidden) <= 24


def test_the_same_seed_gives_the_same_predictors() -> None:
    first, _ = train(config(steps=24), count=16)
    again, _ = train(config(steps=24), count=16)
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    other, _ = train(config(steps=24), count=16, seed=1)
    assert any(not torch.equal(other.state_dict()[name], tensor) for name, tensor in first.state_dict().items())


def test_training_leaves_the_model_and_the_global_generator_alone() -> None:
    model = tiny_model()
    handle = apply_jenga(model, config(steps=12))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_predictors(handle, sequences(4), PadRight(0), seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_pre_hooks for layer in handle.parts.layers)


def test_every_layer_that_selects_gets_its_own() -> None:
    predictors, reports = train(config(steps=12, scope="per_layer", column="sum"), count=16)
    assert predictors.layers == (2, 3)
    assert sorted(reports) == [2, 3]


def test_a_tick_that_raises_ends_the_training() -> None:
    ticks = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 6:  # 4 sequences, then steps
            raise KeyboardInterrupt

    handle = apply_jenga(tiny_model(), config(steps=12))
    with pytest.raises(KeyboardInterrupt):
        train_predictors(handle, sequences(4), PadRight(0), seed=0, tick=tick)


def test_one_sequence_is_not_enough() -> None:
    handle = apply_jenga(tiny_model(), config(steps=12))
    with pytest.raises(DataError, match=r"at least 2 sequences, .*; got 1"):
        train_predictors(handle, sequences(1), PadRight(0), seed=0)


def test_sequences_of_one_block_have_nothing_to_choose() -> None:
    short = [{"input_ids": list(range(3, 3 + length)), "labels": []} for length in (2, 5, 8, 3)]
    for sequence in short:
        sequence["labels"] = sequence["input_ids"]
    handle = apply_jenga(tiny_model(), config(steps=12))
    _, reports = train_predictors(handle, short, PadRight(0), seed=0)
    assert (reports[2].held_out_blocks, reports[2].recall) == (0, 1.0)


def test_measure_counts_free_blocks_only() -> None:
    """Exact scores that the predictor itself made are found whole; reversed ones as far as both choices overlap."""
    torch.manual_seed(0)
    model = LayerPredictor(
        12, query_heads=2, key_heads=1, head_size=4, query_hidden=(8, 8), key_hidden=(8, 8), scale=1.0
    )
    blocks = split_into_blocks(1, 40, block_tokens=4)
    x_BTE = torch.randn(1, 40, 12)
    exact = model.pair_scores(x_BTE, blocks).detach()
    selection = config(keep_fraction=0.4, column="sum").selection
    same = measure(model, [Sample(x_BTE, exact, blocks)] * 2, selection)
    assert (same.wanted, same.chosen, same.both) == (4, 4, 4)  # 10 blocks, 4 kept, 2 of them forced; twice
    assert (same.recall, same.precision, same.score_share, same.chance) == (1, 1, 1, pytest.approx(2 / 8))
    assert measure(model, [Sample(x_BTE, -exact, blocks)], selection).both == 0
    with_targets = config(keep_fraction=0.5, target_fraction=0.5, asked_by="targets").selection
    found = measure(model, [Sample(x_BTE, exact, blocks)] * 5, with_targets)
    assert 20 * 2 <= found.wanted <= 20 * 3  # at 4 places, 5 kept, 2 of them targets, and the first unless it is one
    assert found.recall == 1
    diagonal = torch.diag(torch.arange(10.0))[None]  # the later, the higher
    assert measure(model, [Sample(x_BTE, diagonal, blocks)], selection).recent == 1.0

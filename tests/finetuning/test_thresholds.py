"""Algorithm 1 on a tiny model: means of the dense model's scores, a search that is deterministic, a selection by it."""

from __future__ import annotations

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.config import CalibrationConfig
from jenga_core.elimination.thresholds import Thresholds
from jenga_core.errors import ConfigError
from jenga_core.finetuning.thresholds import calibrate, mean_block_scores, next_token_accuracy
from jenga_core.patching.involvement import Involvement
from tests.support.tiny import tiny_batch, tiny_model

PAPER = JengaConfig.preset("jenga-paper", selection={"block_tokens": 8, "entry_layer": 1})


def test_the_papers_preset_selects_by_threshold_in_every_layer() -> None:
    model, batch = tiny_model(), tiny_batch()
    handle = apply_jenga(model, PAPER)
    with pytest.raises(ConfigError, match="no thresholds are set"):
        model(**batch)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = calibrate(handle, [tiny_batch(seed=5)], CalibrationConfig(sweeps=2))
    assert model.training
    assert sorted(found.by_layer) == [1, 2, 3]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())

    model(**batch).loss.backward()
    report = handle.report()
    assert [span.first_layer for span in report.spans] == [1, 2, 3]
    assert all(span.blocks[0] == 0 for span in report.spans)
    assert 0.1 < min(report.kept_fraction[1:]) < 1.0
    handle.undo()

    again = calibrate(apply_jenga(model, PAPER), [tiny_batch(seed=5)], CalibrationConfig(sweeps=2))
    assert again == found


def test_a_search_can_be_left_between_two_batches() -> None:
    class Left(Exception):
        pass

    handle, batches, ticks, sweeps = apply_jenga(tiny_model(), PAPER), [tiny_batch(seed=5), tiny_batch(seed=6)], [], []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 20:
            raise Left

    with pytest.raises(Left):
        calibrate(handle, batches, CalibrationConfig(sweeps=2), tick=tick, sweep_done=sweeps.append)
    assert (sweeps, handle.thresholds, handle.parts.causal_lm.training) == ([1], None, True)


def test_higher_thresholds_keep_fewer_blocks() -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, padded=False)
    handle = apply_jenga(model, PAPER)
    means = mean_block_scores(handle, [batch], PAPER.selection)
    kept = []
    for factor in (0.0, 1.0, 1e6):
        by_layer = {layer: factor * mean for layer, mean in means.items()}
        handle.thresholds = Thresholds(by_layer, means, 0.0, 0.0)
        model(**batch)
        kept.append([len(span.blocks) for span in handle.report().spans])
    assert kept[0] == [10, 10, 10]
    assert kept[2] == [2, 2, 2]  # the first block, and the last with a label
    assert all(2 < count < 10 for count in kept[1])


def test_accuracy_with_everything_kept_is_the_dense_models() -> None:
    model, batch = tiny_model(), tiny_batch()
    handle = apply_jenga(model, PAPER)
    handle.thresholds = Thresholds(dict.fromkeys((1, 2, 3), 0.0), {}, 0.0, 0.0)
    with torch.no_grad(), handle.disabled():
        predicted = model(**batch).logits[:, :-1].argmax(dim=-1)
        ours = next_token_accuracy(handle, [batch], PAPER.selection)
    labels = batch["labels"][:, 1:]
    assert ours == pytest.approx(float((predicted == labels)[labels != -100].float().mean()))


@pytest.mark.parametrize("column", ["sum", "mean", "relative"])
def test_initial_means_are_of_the_scores_that_training_computes(column: str) -> None:
    """Targets ask, and how many there are depends on keep_fraction."""
    selection = {"by": "threshold", "keep_fraction": 0.2, "block_tokens": 4, "entry_layer": 2, "column": column}
    model, batch = tiny_model(), tiny_batch(batch=1, padded=False)
    handle = apply_jenga(model, JengaConfig.parse({"selection": selection}))
    (mean,) = mean_block_scores(handle, [batch], handle.config.selection).values()
    assert handle.thresholds is None
    handle.thresholds = Thresholds({2: 0.0}, {}, 0.0, 0.0)
    model(**batch)
    assert isinstance(handle.last, Involvement)
    assert mean == pytest.approx(float(handle.last.scores[2].mean()), rel=1e-5)

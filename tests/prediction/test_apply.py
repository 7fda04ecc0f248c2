"""Predicted scores in a training forward: used where asked or where there are some, refused where they cannot be."""

from __future__ import annotations

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.errors import ConfigError
from jenga_core.prediction.predictor import LayerPredictor, Predictors
from tests.prediction.conftest import Trained, config
from tests.support.tiny import tiny_batch, tiny_model


def test_predicted_scores_make_the_selection(trained: Trained) -> None:
    predictors, _ = trained
    model, batch = tiny_model(), tiny_batch()
    handle = apply_jenga(model, config(score="predicted"), predictors)
    assert handle.score == "predicted"
    loss = model(**batch).loss
    loss.backward()
    report = handle.report()
    assert report.score == "predicted"
    assert "predicted scores, 10 blocks" in str(report)

    _, involvement = handle.run(batch, handle.config.selection)
    captured = []
    hook = handle.parts.layers[2].register_forward_pre_hook(
        lambda layer, given, named: captured.append(given[0]), with_kwargs=True
    )
    with torch.no_grad(), handle.disabled():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    hook.remove()
    expected_BN = predictors[2].scores(captured[0], involvement.blocks, column="relative")
    torch.testing.assert_close(involvement.scores[2], expected_BN)
    assert all(parameter.grad is None for parameter in predictors.parameters())


def test_auto_takes_predictors_where_there_are_some(trained: Trained) -> None:
    predictors, _ = trained
    without, batch = tiny_model(), tiny_batch()
    exact = apply_jenga(without, config())
    assert exact.score == "exact"
    without(**batch)

    model = tiny_model()
    handle = apply_jenga(model, config(), predictors)
    assert handle.score == "predicted"
    model(**batch)
    assert (handle.report().score, exact.report().score) == ("predicted", "exact")
    exact.use_predictors(predictors)
    without(**batch)
    assert exact.report() == handle.report()


def test_exact_stays_exact(trained: Trained) -> None:
    predictors, _ = trained
    handle = apply_jenga(tiny_model(), config(score="exact"), predictors)
    assert handle.score == "exact"


def test_predictors_are_no_part_of_the_model(trained: Trained) -> None:
    predictors, _ = trained
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    apply_jenga(model, config(), predictors)
    assert [name for name, _ in model.named_parameters()] == names


def test_predicted_without_predictors_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no predictors are given; train them with .*train_predictors") as raised:
        apply_jenga(tiny_model(), config(score="predicted"))
    assert raised.value.param == "jenga.selection.score"
    off = JengaConfig.preset("lora", selection={"score": "predicted"})
    assert apply_jenga(tiny_model(), off).report().enabled is False


def test_predictors_of_other_layers_or_sizes_are_refused(trained: Trained) -> None:
    predictors, _ = trained
    model = tiny_model()
    handle = apply_jenga(model, config(scope="per_layer"))
    with pytest.raises(ConfigError, match=r"are for layers \[2\], but layers \[3\] select, too"):
        handle.use_predictors(predictors)
    handle.undo()
    of_8_channels = LayerPredictor(
        8, query_heads=1, key_heads=1, head_size=2, query_hidden=(4, 4), key_hidden=(4, 4), scale=1.0
    )
    other = Predictors({2: of_8_channels})
    with pytest.raises(ConfigError, match="is for hidden size 8, the model has 32"):
        apply_jenga(model, config(), other)
    apply_jenga(model, config())  # what was refused left no patch

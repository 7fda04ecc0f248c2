"""Held-out loss is the dense model's own."""

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning.data import PadRight
from jenga_core.finetuning.evaluation import evaluate
from tests.support.tiny import tiny_batch, tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt-post-norm"])
def test_it_equals_the_loss_that_transformers_computes_over_all_windows(model_type: str) -> None:
    model, batch = tiny_model(model_type), tiny_batch(batch=4, padded=False)
    sequences = [{"input_ids": row, "labels": row} for row in batch["input_ids"].tolist()]
    apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": 8}))
    result = evaluate(model, sequences, PadRight(0), windows=4, segment_tokens=16)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert (result.windows, result.tokens) == (4, 4 * 76)


def test_windows_are_spread_evenly() -> None:
    model = tiny_model()
    seen: list[int] = []

    class Sequences(list):  # type: ignore[type-arg]
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            seen.append(index)
            return super().__getitem__(index)

    sequences = Sequences([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 10)
    assert evaluate(model, sequences, PadRight(0), windows=4, segment_tokens=16).windows == 4
    assert seen == [0, 2, 5, 7]
    evaluate(model, sequences, PadRight(0), windows=4, segment_tokens=16, tick=lambda: seen.append(-1))
    assert seen[4:] == [0, -1, 2, -1, 5, -1, 7, -1]

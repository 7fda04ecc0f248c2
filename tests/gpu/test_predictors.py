"""Predictors on a CUDA device: the same scores as on a CPU, and the same predictors from the same seed."""

from __future__ import annotations

import pytest
import torch

from jenga_core import apply_jenga
from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.finetuning.data import PadRight
from jenga_core.finetuning.predictors import train_predictors
from jenga_core.prediction.predictor import Predictors
from tests.prediction.conftest import Trained, config, sequences
from tests.prediction.test_predictor import batch, predictor
from tests.support.tiny import tiny_batch, tiny_model

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def train() -> Trained:
    handle = apply_jenga(tiny_model().cuda(), config())
    return train_predictors(handle, sequences(), PadRight(0), seed=0)


def test_scores_equal_those_of_the_cpu() -> None:
    x_BTE, blocks = batch()
    on_cpu = predictor().scores(x_BTE, blocks, column="mean")
    on_gpu = predictor().cuda().scores(x_BTE.cuda(), blocks.to(torch.device("cuda")), column="mean")
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4)


def test_the_kernel_scores_plain_sequences() -> None:
    """Blocks of 16 tokens, which it takes; one sequence is padded."""
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[1, 70:] = 0
    blocks = split_into_blocks(2, 100, block_tokens=16, attention_mask_BT=mask)
    x_BTE = torch.randn(2, 100, 12, generator=torch.Generator().manual_seed(1))
    on_cpu = predictor().pair_scores(x_BTE, blocks)
    on_gpu = predictor().cuda().pair_scores(x_BTE.cuda(), blocks.to(torch.device("cuda")))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-2)


def test_the_same_seed_gives_the_same_predictors_and_they_recall() -> None:
    (first, reports), (again, _) = train(), train()
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert reports[2].recall >= 0.55


def test_a_training_forward_with_predicted_scores() -> None:
    predictors: Predictors = train()[0]
    model = tiny_model().cuda()
    handle = apply_jenga(model, config(score="predicted"), predictors)
    loss = model(**{name: tensor.cuda() for name, tensor in tiny_batch().items()}).loss
    loss.backward()
    assert loss.isfinite()
    assert handle.report().score == "predicted"

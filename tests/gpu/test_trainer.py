"""The trainer on a GPU: steps from a graph, and a dense step before the first, which training must not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.finetuning.captured_steps import CapturedSteps
from jenga_core.finetuning.data import Encoded, PadRight
from jenga_core.finetuning.dense_reference import DenseReference
from jenga_core.finetuning.trainer import finetune, make_plan
from tests.support.tiny import VOCABULARY, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

T, STEPS = 256, 8


class Recorder:
    """A Watcher that remembers."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.memory: list[tuple[int, DenseReference]] = []

    def memory_measured(self, activation_bytes: int, dense: DenseReference) -> None:
        self.memory.append((activation_bytes, dense))

    def step_done(self, step: int, *, train_loss: float, **_: Any) -> None:
        self.losses.append(train_loss)

    def checkpoint_saved(self, step: int, folder: Path) -> None:
        pass

    def save_state(self, folder: Path) -> None:
        pass

    def should_stop(self) -> bool:
        return False


@pytest.mark.parametrize("score", ["exact", "random"])
def test_memory_is_measured_beside_dense_and_training_does_not_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    """Exact scores: steps are replayed from a graph. Random ones: none is, and the generator's numbers count."""
    replayed: list[int] = []
    let_go = CapturedSteps.let_go

    def noted(steps: CapturedSteps) -> None:
        replayed.append(steps.replayed)
        let_go(steps)

    monkeypatch.setattr(CapturedSteps, "let_go", noted)
    torch.manual_seed(3)
    windows = [torch.randint(3, VOCABULARY, (T,)).tolist() for _ in range(STEPS)]
    data = Encoded([{"input_ids": each, "labels": each} for each in windows], STEPS, 0, 0, 0, 0)  # type: ignore[arg-type]
    config = JengaConfig.preset(
        "jenga",
        context_length_tokens=T,
        max_steps=STEPS,
        learning_rate=1e-2,
        selection={"block_tokens": 16, "score": score},
    )
    recorders = []
    for measure_memory in (False, True):
        torch.manual_seed(0)
        model = add_adapter(tiny_model().requires_grad_(False).cuda(), config.lora)
        apply_jenga(model, config)
        recorder = Recorder()
        finetune(
            model, data, PadRight(0), config, make_plan(config, {}, num_sequences=STEPS),
            seed=7, checkpoint_folder=tmp_path / str(measure_memory), watcher=recorder, measure_memory=measure_memory,
        )  # fmt: skip
        recorders.append(recorder)
    plain, measured = recorders
    assert measured.losses == plain.losses
    assert len(plain.losses) == STEPS
    assert not plain.memory
    ((activation_bytes, dense),) = measured.memory
    assert 0 < activation_bytes < dense.activation_bytes
    assert dense.tokens == dense.measured_tokens == T
    assert (max(replayed) > 0) == (score == "exact")

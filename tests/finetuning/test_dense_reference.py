"""What dense training would take, where the whole step does not fit."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning import dense_reference
from jenga_core.finetuning.data import PadRight
from tests.support.tiny import tiny_model


def test_after_running_out_of_memory_the_peak_is_that_of_the_shorter_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    handle = apply_jenga(model, JengaConfig())
    own, order = dense_reference._dense_step, []

    def step(model: Any, handle: Any, batch: dict[str, torch.Tensor]) -> int:
        order.append(batch["input_ids"].shape[1])
        if order[-1] == 128:
            held = torch.zeros(7)
            failed.append(weakref.ref(held))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(model, handle, batch)

    monkeypatch.setattr(dense_reference, "_dense_step", step)
    failed: list[weakref.ref[torch.Tensor]] = []

    def reset(device: torch.device) -> None:
        order.append("reset")
        assert all(tensor() is None for tensor in failed)  # else they were in the peak that begins

    monkeypatch.setattr(dense_reference, "reset_peak", reset)
    batch = PadRight(0)([{"input_ids": list(range(3, 131)), "labels": list(range(3, 131))}])
    found = dense_reference.measure_dense(model, handle, batch)
    assert order == ["reset", 128, "reset", 16, 32]
    assert found.measured_tokens == 32

"""Steps from a CUDA graph against the same steps as they are: losses, gradients and reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning.captured_steps import CapturedSteps
from tests.gpu.test_training_step import stored_in
from tests.support.tiny import tiny_batch

pytestmark = pytest.mark.gpu

EPOCHS = (0, 0, 0, 0, 1, 1)

POLICIES: dict[str, dict[str, Any]] = {
    "deferred": {},
    "deferred, mlp recomputed": {"recompute": "mlp"},
    "deferred, recomputed": {"recompute": "full"},
    "carried": {"selection": {"below_entry": "involved"}},
    "gradient only": {"selection": {"unselected": "forward_only"}},
    "per layer": {"selection": {"scope": "per_layer"}},
    "lora": {"preset": "lora"},
    "lora, recomputed": {"preset": "lora", "recompute": "full"},
    "plain modules": {"fused": False},
}

CASES = [
    (model_type, policy)
    for model_type in ("llama", "qwen3", "opt")
    for policy, fields in POLICIES.items()
    if model_type != "opt" or fields.get("recompute") != "mlp"  # OPT's MLP is no module of its own
]


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def run(model_type: str, fields: dict[str, Any], *, cuda_graph: bool) -> tuple[list[Any], int]:
    """Six steps with an optimizer, two micro-batches each; what each left behind, and how many were replayed."""
    model = stored_in(torch.bfloat16, model_type)
    values = {"preset": "jenga", **fields, "cuda_graph": cuda_graph}
    values["selection"] = {"block_tokens": 16, **fields.get("selection", {})}
    handle = apply_jenga(model, JengaConfig.parse(values))
    model.train()

    def forward_and_backward(batch: dict[str, Any]) -> Tensor:
        loss: Tensor = model(**batch).loss
        loss.backward()
        return loss.detach()

    steps = CapturedSteps(handle, forward_and_backward)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    found = []
    for index, epoch in enumerate(EPOCHS):
        handle.epoch = epoch
        losses = []
        for half in range(2):
            batch = {name: each.cuda() for name, each in batch_of(2 * index + half).items()}
            losses.append(float(steps({**batch, "num_items_in_batch": torch.tensor(398, device="cuda")})))
        gradients = {name: each.grad.double().cpu() for name, each in trained.items() if each.grad is not None}
        found.append((losses, gradients, handle.report()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return found, steps.replayed


def batch_of(seed: int) -> dict[str, Tensor]:
    return tiny_batch(batch=1, tokens=200, padded=False, seed=seed)


@pytest.mark.parametrize(("model_type", "policy"), CASES)
def test_a_replayed_step_is_the_step(model_type: str, policy: str) -> None:
    fields = POLICIES[policy]
    plain, none = run(model_type, fields, cuda_graph=False)
    captured, replayed = run(model_type, fields, cuda_graph=True)
    assert (none, replayed) == (0, 2 * len(EPOCHS) - 2)
    for step, (ours, theirs) in enumerate(zip(captured, plain, strict=True)):
        torch.testing.assert_close(ours[0], theirs[0], rtol=2e-3, atol=2e-4)
        assert ours[2] == theirs[2], f"step {step} chose other blocks"
        assert ours[1].keys() == theirs[1].keys()
        for name, gradient in ours[1].items():
            torch.testing.assert_close(gradient, theirs[1][name], rtol=5e-2, atol=2e-2 * float(gradient.abs().max()))


def test_what_waits_for_the_gpu_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = stored_in(torch.bfloat16, "llama")
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": 16}))
    model.train()

    def forward_and_backward(batch: dict[str, Any]) -> Tensor:
        loss: Tensor = model(**batch).loss
        loss.item()
        loss.backward()
        return loss.detach()

    steps = CapturedSteps(handle, forward_and_backward)
    batch = {name: each.cuda() for name, each in batch_of(0).items()}
    losses = []
    for _ in range(5):
        losses.append(float(steps(batch)))
        nn.Module.zero_grad(model)
    assert steps.replayed == 0
    assert "capturing one as a CUDA graph failed" in caplog.text
    assert torch.rand(9, device="cuda").unique().numel() > 1  # random numbers can be drawn as before
    torch.testing.assert_close(losses, losses[:1] * 5, rtol=1e-3, atol=1e-4)

"""Which steps are captured, and that a replay reads and writes what the step would have.

The capture here is one in name: its replay runs the step again, on the tensors that the graph would read. Graphs, and
what is reported after them, are tested on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning.captured_steps import CapturedSteps, can_be_captured, is_full
from tests.support.tiny import tiny_batch, tiny_model


class Bench:
    """A patched model, its steps, and a count of what ran."""

    def __init__(self, *, fails: bool = False, **fields: Any) -> None:
        torch.manual_seed(0)
        self.model = tiny_model()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        layer = self.model.model.layers[3].self_attn.q_proj
        self.weight: nn.Parameter = layer.weight.requires_grad_(True)
        self.handle = apply_jenga(self.model, JengaConfig.parse({"selection": {"block_tokens": 16}, **fields}))
        self.model.train()
        self.captures = 0
        self.fails = fails
        self.steps = CapturedSteps(self.handle, self.step, self.capture)

    def step(self, batch: dict[str, Any]) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        loss.backward()
        return loss.detach()

    def capture(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        loss = torch.zeros(())

        def replay() -> None:
            with self.handle.full_windows():
                loss.copy_(function())

        return replay, loss


def batch(seed: int = 0, tokens: int = 77, **others: Any) -> dict[str, Any]:
    return {**tiny_batch(batch=2, tokens=tokens, padded=False, seed=seed), **others}


def test_the_third_step_of_a_kind_is_captured_and_all_after_it_are_replayed() -> None:
    bench = Bench()
    ran = [(bench.steps(batch(seed)), bench.captures, bench.steps.replayed)[1:] for seed in range(5)]
    assert ran == [(0, 0), (0, 0), (1, 1), (1, 2), (1, 3)]


def test_replayed_steps_have_the_losses_and_gradients_of_plain_ones() -> None:
    captured, plain = Bench(), Bench(cuda_graph=False)
    for seed in range(5):
        found = []
        for bench in (captured, plain):
            losses = [float(bench.steps(batch(2 * seed + half))) for half in range(2)]  # gradients add up
            found.append((losses, bench.weight.grad))
            bench.weight.grad = None  # as Trainer does
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-7)
    assert (captured.steps.replayed, plain.steps.replayed) == (8, 0)


def test_a_loss_stays_when_the_next_step_is_replayed() -> None:
    bench = Bench()
    losses = [bench.steps(batch(seed)) for seed in range(4)]
    third = float(losses[2])
    bench.steps(batch(9))
    assert float(losses[2]) == third


def test_another_epoch_is_captured_anew_and_at_once() -> None:
    bench = Bench()
    for seed in range(4):
        bench.steps(batch(seed))
    bench.handle.epoch = 1
    bench.steps(batch(4))
    assert (bench.captures, bench.steps.replayed) == (2, 3)


def test_a_step_of_another_kind_runs_as_it_is_and_lets_the_graph_go() -> None:
    bench = Bench()
    for seed in range(3):
        bench.steps(batch(seed))
    bench.steps(batch(3, tokens=64))
    for seed in range(2):
        bench.steps(batch(seed))
    assert (bench.captures, bench.steps.replayed) == (1, 1)
    bench.steps(batch(7))
    assert (bench.captures, bench.steps.replayed) == (2, 2)


def test_what_cannot_be_captured_is_tried_once_and_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    bench, plain = Bench(fails=True), Bench(cuda_graph=False)
    losses = [(float(bench.steps(batch(seed))), float(plain.steps(batch(seed)))) for seed in range(5)]
    assert all(ours == pytest.approx(theirs, rel=1e-6) for ours, theirs in losses)
    assert (bench.captures, bench.steps.replayed) == (1, 0)
    assert "operation not permitted" in caplog.text
    torch.testing.assert_close(bench.weight.grad, plain.weight.grad)


def test_without_a_handle_steps_run_as_they_are() -> None:
    bench = Bench()
    steps = CapturedSteps(None, bench.step, bench.capture)
    for seed in range(4):
        steps(batch(seed))
    assert (bench.captures, steps.replayed) == (0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"cuda_graph": False},
        {"selection": {"by": "threshold"}},
        {"selection": {"score": "random"}},
        {"selection": {"mlp_keep_fraction": 0.5}},
        {"preset": "lora", "fused": False},
        {"recompute": "full", "offload": True},
    ],
    ids=str,
)
def test_what_chooses_on_the_host_or_leaves_training_to_the_model_is_not_captured(fields: dict[str, Any]) -> None:
    assert can_be_captured(Bench().handle, batch())
    assert not can_be_captured(Bench(**fields).handle, batch())


def test_sliding_windows_and_eager_attention_are_not_captured() -> None:
    for model in (tiny_model("mistral", sliding_window=40), tiny_model(attention="eager")):
        handle = apply_jenga(model, JengaConfig())
        assert not can_be_captured(handle, batch())
    wide = apply_jenga(tiny_model("mistral", sliding_window=77), JengaConfig())
    assert can_be_captured(wide, batch())


def test_full_windows_have_neither_padding_nor_gaps_nor_packed_documents() -> None:
    vocabulary = 256
    full = batch()
    full["labels"][:, 0] = -100  # nobody predicts the first token
    assert is_full(full, vocabulary)
    assert is_full({**full, "attention_mask": torch.ones(2, 77)}, vocabulary)
    padded = torch.ones(2, 77)
    padded[1, -1] = 0
    assert not is_full({**full, "attention_mask": padded}, vocabulary)
    for label in (-100, vocabulary, -7):
        labels = full["labels"].clone()
        labels[0, 5] = label
        assert not is_full({**full, "labels": labels}, vocabulary)
    assert not is_full({**full, "position_ids": torch.arange(77)[None]}, vocabulary)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "phi3", "opt"])
@pytest.mark.parametrize("fields", [{}, {"preset": "lora"}, {"selection": {"scope": "per_layer"}}], ids=str)
def test_full_windows_change_nothing(model_type: str, fields: dict[str, Any]) -> None:
    """What `full_windows` leaves out, masks and looking at labels, is right to be left out."""
    found = []
    for says_full in (False, True):
        model = tiny_model(model_type, **({"sliding_window": None} if model_type in ("mistral", "phi3") else {}))
        handle = apply_jenga(model, JengaConfig.parse(fields))
        model.train()
        given = batch()
        if says_full:
            del given["attention_mask"]
            with handle.full_windows():
                loss = model(**given).loss
        else:
            loss = model(**given).loss
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_what_a_graph_bakes_in_tells_kinds_apart() -> None:
    bench = Bench()
    for seed in range(3):
        bench.steps(batch(seed))
    bench.model.model.layers[2].self_attn.q_proj.weight.requires_grad_(True)
    bench.steps(batch(3))
    assert (bench.captures, bench.steps.replayed) == (1, 1)


def test_a_step_without_labels_or_with_tensors_elsewhere_is_not_captured() -> None:
    handle = Bench().handle
    without = {name: value for name, value in batch().items() if name != "labels"}
    assert not can_be_captured(handle, without)
    assert not can_be_captured(handle, batch(num_items_in_batch=torch.tensor(1, device="meta")))


def test_full_windows_within_full_windows() -> None:
    bench = Bench()
    with bench.handle.full_windows():
        with bench.handle.full_windows():
            pass
        assert bench.handle._is_full
    assert not bench.handle._is_full

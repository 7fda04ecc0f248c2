"""The parity ladder's last step: 32 training steps on a tiny model, and the dense model must have learnt as before.

Each row of BAND is the dense model's loss on the training text, before and after, as measured when the row was written,
for dense and for sparse training. A change that moves a number out of its band has changed what is computed; if it was
meant to, measure again: `python -m tests.patching.test_convergence`.
"""

from __future__ import annotations

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from tests.support.tiny import MODEL_TYPES, tiny_model, tiny_tokenizer

STEPS = 32
BAND = 0.03
"""Nats."""

TEXT = "the quick brown fox jumps over the lazy dog while seven wizards box twelve quiet jocks. " * 6

EXPECTED = {
    ("llama", "lora"): (5.678, 1.662),
    ("llama", "jenga"): (5.678, 1.651),
    ("mistral", "lora"): (5.707, 0.825),
    ("mistral", "jenga"): (5.707, 0.726),
    ("qwen2", "lora"): (5.939, 1.356),
    ("qwen2", "jenga"): (5.939, 1.185),
    ("qwen3", "lora"): (5.737, 1.436),
    ("qwen3", "jenga"): (5.737, 1.317),
    ("gemma2", "lora"): (5.722, 3.404),
    ("gemma2", "jenga"): (5.722, 3.389),
    ("gemma3_text", "lora"): (5.858, 0.710),
    ("gemma3_text", "jenga"): (5.858, 0.754),
    ("phi3", "lora"): (6.087, 0.784),
    ("phi3", "jenga"): (6.087, 0.754),
    ("opt", "lora"): (5.575, 3.093),
    ("opt", "jenga"): (5.575, 3.116),
    ("opt-post-norm", "lora"): (5.548, 2.098),
    ("opt-post-norm", "jenga"): (5.548, 2.241),
}
"""(before, after) in nats, by model type and preset."""


def train(model_type: str, preset: str) -> tuple[float, float]:
    """The dense model's loss before and after."""
    model = tiny_model(model_type, layers=4)
    ids = torch.tensor([tiny_tokenizer()(TEXT).input_ids[:240], tiny_tokenizer()(TEXT).input_ids[40:280]])
    handle = apply_jenga(model, JengaConfig.preset(preset, selection={"block_tokens": 8}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = evaluate(model, ids)
    for step in range(STEPS):
        handle.epoch = step
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    handle.undo()
    return before, evaluate(model, ids)


def evaluate(model: torch.nn.Module, ids: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    model.train()
    return loss


@pytest.mark.parametrize("preset", ["lora", "jenga"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_dense_model_learns_as_before(model_type: str, preset: str) -> None:
    before, after = train(model_type, preset)
    assert before == pytest.approx(EXPECTED[model_type, preset][0], abs=BAND)
    assert after == pytest.approx(EXPECTED[model_type, preset][1], abs=BAND)


def test_sparse_training_learns_most_of_what_dense_training_does() -> None:
    for model_type in MODEL_TYPES:
        before, dense = EXPECTED[model_type, "lora"]
        sparse = EXPECTED[model_type, "jenga"][1]
        assert (before - sparse) > 0.9 * (before - dense), model_type


if __name__ == "__main__":
    for name in MODEL_TYPES:
        for preset_name in ("lora", "jenga"):
            losses = train(name, preset_name)
            print(f'    ("{name}", "{preset_name}"): ({losses[0]:.3f}, {losses[1]:.3f}),', flush=True)

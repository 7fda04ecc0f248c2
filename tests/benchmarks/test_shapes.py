"""The shapes that are measured."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.shapes import SHAPES, make_model

PARAMETERS = {
    "llama-3-8b": 8.030e9,
    "llama-2-7b": 6.738e9,
    "qwen3-8b": 8.191e9,
    "opt-6.7b": 6.658e9,
    "opt-1.3b": 1.316e9,
    "smollm2-135m": 0.1345e9,
}
"""As published; OPT's with 2,048 positions."""


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_shapes_have_their_models_size(name: str) -> None:
    shape = SHAPES[name]
    config = AutoConfig.for_model(shape.model_type, **shape.config_fields(2048))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[name], rel=1e-3)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["tiny", "tiny-opt"])
def test_models_are_random_frozen_and_whole(name: str) -> None:
    model = make_model(SHAPES[name], 4096, torch.device("cpu"))
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad and p.isfinite().all() for p in model.parameters())
    assert model.get_output_embeddings().weight.float().std().item() == pytest.approx(0.02, rel=0.1)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    assert norms
    assert all((norm.weight == 1).all() for norm in norms)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == SHAPES[name].is_tied
    loss = model(input_ids=torch.randint(512, (1, 64)), labels=torch.randint(512, (1, 64))).loss
    assert loss.item() == pytest.approx(torch.tensor(512).log().item(), abs=0.5)

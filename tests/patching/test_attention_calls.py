"""The queries and keys that are taken from a layer are those that make its attention weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jenga_core.patching.attention_calls import attention_call
from jenga_core.patching.parts import parts_of
from tests.support.tiny import MODEL_TYPES, WINDOW, tiny_batch, tiny_model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_they_make_the_attention_weights_of_every_layer(model_type: str) -> None:
    model, batch = tiny_model(model_type, attention="eager"), tiny_batch(batch=2, padded=False)
    parts = parts_of(model)
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    weights: list[Tensor] = []
    for layer in parts.layers:
        layer.register_forward_pre_hook(lambda _m, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True)
        layer.self_attn.register_forward_hook(lambda _m, _args, output: weights.append(output[1]))
    model(**batch)
    assert len(calls) == len(weights) == 4

    windows = []
    for layer, (x, arguments), weights_BHTT in zip(parts.layers, calls, weights, strict=True):
        asked = attention_call(layer, parts.architecture, x, arguments)
        windows.append(asked.window_tokens)
        k_BHTD = asked.k_BKGD.repeat_interleave(asked.q_BHGD.shape[1] // asked.k_BKGD.shape[1], dim=1)
        scores = asked.q_BHGD @ k_BHTD.transpose(2, 3) * asked.scale
        cap = getattr(model.config, "attn_logit_softcapping", None)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        distance = torch.arange(77)[:, None] - torch.arange(77)
        seen = (distance >= 0) & (distance < (asked.window_tokens or 77))
        expected = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        torch.testing.assert_close(weights_BHTT, expected)
    sliding = {"mistral": [WINDOW] * 4, "phi3": [WINDOW] * 4}
    alternating = [WINDOW, None] * 2 if model_type.startswith("gemma") else [None] * 4
    assert windows == sliding.get(model_type, alternating)


def test_the_layer_is_left_as_it_was() -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, padded=False)
    parts = parts_of(model)
    layer, config = parts.layers[0], parts.layers[0].self_attn.config
    x = nn.functional.embedding(batch["input_ids"], model.get_input_embeddings().weight).requires_grad_()
    angles = parts.decoder.rotary_emb(x, torch.arange(77)[None])
    asked = attention_call(layer, parts.architecture, x, {"position_embeddings": angles})
    assert not asked.q_BHGD.requires_grad
    assert layer.self_attn.config is config
    with pytest.raises(TypeError, match="cannot unpack"):
        attention_call(layer, parts.architecture, x, {"position_embeddings": None})
    assert layer.self_attn.config is config

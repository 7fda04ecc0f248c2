"""Attention within shifted groups, against the unpatched model with a mask for every head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jenga_core import JengaConfig, apply_jenga
from jenga_core.errors import ConfigError
from tests.patching.test_parity import step, with_adapter
from tests.support.tiny import tiny_batch, tiny_model

GROUP = 24
TOKENS = 80


def mask_of(
    heads: int, key_heads: int, tokens: int, group: int, sink: int = 0, starts: tuple[int, ...] = (0,)
) -> Tensor:
    """1 x H x T x T, additive: the first half of the key heads in groups that begin at multiples of `group`, the other
    in groups that begin half a group before them; all see the first `sink` keys of their document, too."""
    t = torch.arange(tokens)
    masks = []
    for head in range(heads):
        half = head * key_heads // heads >= (key_heads + 1) // 2 if key_heads > 1 else head >= (heads + 1) // 2
        group_of = (t + (group // 2 if half else 0)) // group
        document_of = (t[:, None] >= torch.tensor(starts)).sum(dim=1) - 1
        of_sink = t < torch.tensor(starts)[document_of] + sink
        sees = (group_of[:, None] == group_of[None, :]) | of_sink[None, :]
        sees &= (t[:, None] >= t[None, :]) & (document_of[:, None] == document_of[None, :])
        masks.append(torch.where(sees, 0.0, -1e30))
    return torch.stack(masks)[None].double()


def close(ours: Tensor, true: Tensor) -> None:
    """Theirs have a float32 loss and, under eager, a float32 softmax."""
    torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-5, check_dtype=False)


def losses(model: nn.Module, batch: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return step(model, {**batch, "attention_mask": mask})


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 3), (4, 1), (1, 1)])
@pytest.mark.parametrize(("fused", "sink"), [(True, 0), (False, 0), (True, 5), (False, 30)])
def test_dense_training_in_groups(heads: int, key_heads: int, fused: bool, sink: int) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": key_heads, "hidden_size": 8 * heads, "head_dim": 8}
    model = with_adapter(tiny_model("llama", attention="eager", **sizes).double())
    batch = {
        name: each
        for name, each in tiny_batch(batch=2, tokens=TOKENS, padded=False).items()
        if name != "attention_mask"
    }
    true_loss, true_gradients = losses(model, batch, mask_of(heads, key_heads, TOKENS, GROUP, sink))
    config = JengaConfig.preset("longlora", attention_group_tokens=GROUP, attention_sink_tokens=sink, fused=fused)
    handle = apply_jenga(model, config)
    loss, gradients = step(model, batch)
    close(loss, true_loss)
    assert gradients.keys() == true_gradients.keys()
    for name, gradient in true_gradients.items():
        close(gradients[name], gradient)
    model.eval()
    with torch.no_grad():
        ours = model(**batch).loss
        handle.undo()
        torch.testing.assert_close(ours, model(**batch).loss, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_every_document_of_a_packed_sequence_has_its_own_sink(model_type: str) -> None:
    starts, sink = (0, 9, 50), 7
    all_layers = {"layer_types": ["full_attention"] * 4} if model_type == "gemma2" else {}
    model = with_adapter(tiny_model(model_type, attention="eager", **all_layers).double())
    packed = tiny_batch(batch=1, tokens=TOKENS, padded=False)
    positions = torch.cat([torch.arange(end - start) for start, end in zip(starts, (*starts[1:], TOKENS), strict=True)])
    packed = {"input_ids": packed["input_ids"], "labels": packed["labels"], "position_ids": positions[None]}
    packed["labels"][:, list(starts)] = -100  # nobody predicts the first token of a document
    true_loss, true_gradients = losses(model, packed, mask_of(4, 2, TOKENS, GROUP, sink, starts))
    apply_jenga(model, JengaConfig.preset("longlora", attention_group_tokens=GROUP, attention_sink_tokens=sink))
    loss, gradients = step(model, packed)
    close(loss, true_loss)
    for name, gradient in true_gradients.items():
        close(gradients[name], gradient)


def test_a_window_that_ends_before_the_sink_does_not_see_it() -> None:
    model, batch = with_adapter(tiny_model("mistral").double()), tiny_batch(batch=2, tokens=TOKENS)
    losses_by_sink = []
    for sink in (0, 16):
        fields = {"attention_group_tokens": GROUP, "attention_sink_tokens": sink}
        handle = apply_jenga(model, JengaConfig.preset("longlora", **fields))
        losses_by_sink.append(step(model, batch)[0])
        handle.undo()
    assert torch.equal(*losses_by_sink)


def test_a_group_as_long_as_the_text_is_dense() -> None:
    model, batch = with_adapter(tiny_model("qwen3").double()), tiny_batch(batch=3)
    true_loss, _ = step(model, batch)
    apply_jenga(model, JengaConfig.preset("longlora", attention_group_tokens=4096))
    loss, _ = step(model, batch)
    close(loss, true_loss)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "opt"])
def test_two_dimensional_sparsity(model_type: str) -> None:
    """Groups among the involved rows: fewer keys for each, other losses, gradients for every adapter."""
    batch = tiny_batch(batch=2, tokens=TOKENS)

    def run(group: int | None, sink: int = 0) -> tuple[Tensor, dict[str, Tensor], Any]:
        model = with_adapter(tiny_model(model_type))
        selection = {"block_tokens": 8, "entry_layer": 2}
        fields = {"attention_group_tokens": group, "attention_sink_tokens": sink, "selection": selection}
        handle = apply_jenga(model, JengaConfig.preset("jenga", **fields))
        return *step(model, batch), handle.report().spans

    dense, all_gradients, spans = run(None)
    same, _, _ = run(4096)
    grouped, gradients, spans_in_groups = run(8)
    torch.testing.assert_close(same, dense)
    if model_type in ("llama", "opt"):  # in the others some layers slide, and see no sink
        as_sink, all_again, _ = run(8, sink=TOKENS)
        torch.testing.assert_close(as_sink, dense)
        for name, gradient in all_gradients.items():
            torch.testing.assert_close(all_again[name], gradient, rtol=1e-3, atol=1e-5)
    assert spans_in_groups == spans  # the layers that choose see all tokens
    assert float((grouped - dense).abs()) > 1e-6
    assert gradients.keys() == all_gradients.keys()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_groups_are_not_recomputed_in_full() -> None:
    with pytest.raises(ConfigError, match="recompute='full' attends to all tokens again"):
        JengaConfig.preset("longlora", recompute="full")


def test_dropout_of_attention_is_refused() -> None:
    model = tiny_model(attention_dropout=0.2)
    apply_jenga(model, JengaConfig.preset("longlora"))
    with pytest.raises(ConfigError, match=r"attention dropout is 0\.2; .*attention in groups"):
        model(**tiny_batch(batch=1))

"""The parity ladder: (1) off is the unpatched model, (2) keeping everything is dense training, (3) undo leaves no
trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from jenga_core import JengaConfig, apply_jenga
from jenga_core.config import SelectionConfig
from jenga_core.errors import ConfigError
from jenga_core.patching.architectures import architecture_of
from tests.support.assertions import assert_bit_identical, assert_within_budget
from tests.support.tiny import MODEL_TYPES, tiny_batch, tiny_model

POLICIES = {
    "deferred": {},
    "carried": {"below_entry": "involved"},
    "carried-loss-on-all": {"below_entry": "involved", "loss_on": "all"},
    "deferred-loss-on-all": {"loss_on": "all"},
    "gradient-only": {"unselected": "forward_only"},
    "per-layer": {"scope": "per_layer"},
    "from-layer-0": {"entry_layer": 0},
}


def with_adapter(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    targets = list(architecture_of(model.config.model_type).adapter_targets)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide the gradients of lora_A
            nn.init.normal_(parameter, std=0.1)
    return adapted


def step(model: nn.Module, batch: dict[str, Tensor], **arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step; gradients are cleared afterwards."""
    loss = model(**batch, **arguments).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def jenga(keep_fraction: float = 0.4, **selection: Any) -> JengaConfig:
    return JengaConfig.preset(
        "jenga", selection={"block_tokens": 8, "keep_fraction": keep_fraction, **selection}, loss={"segment_tokens": 16}
    )


@pytest.mark.parametrize("recompute", ["none", "mlp", "full"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_step_1_the_lora_preset_is_dense(model_type: str, adapter: bool, recompute: str) -> None:
    """Leaner, and equal within budget."""
    model, batch = tiny_model(model_type), tiny_batch()
    model = with_adapter(model) if adapter else model
    loss, gradients = step(model, batch)
    config = JengaConfig.preset("lora", recompute=recompute)
    if recompute == "mlp" and (not adapter or model_type.startswith("opt")):  # its MLP is trained, or not gated
        with pytest.raises(ConfigError, match="recompute='mlp' needs gated MLPs of frozen weights"):
            apply_jenga(model, config)
        assert_step_is_identical(model, batch, loss, gradients)
        return
    handle = apply_jenga(model, config)
    ours, our_gradients = step(model, batch)
    assert_within_budget("keep_everything", ours=ours, truth=loss)
    assert our_gradients.keys() == gradients.keys()
    for name, truth in gradients.items():
        if name.endswith("k_proj.bias") and model_type.startswith("opt"):
            # Without rotation it adds the same to all scores of a query: softmax does not see it, and both are noise.
            assert max(truth.abs().max(), our_gradients[name].abs().max()) < 1e-9
        else:
            assert_within_budget("keep_everything", ours=our_gradients[name], truth=truth)
    handle.undo()
    assert_step_is_identical(model, batch, loss, gradients)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_step_1_off_is_bit_identical(model_type: str, adapter: bool) -> None:
    model, batch = tiny_model(model_type), tiny_batch()
    model = with_adapter(model) if adapter else model
    loss, gradients = step(model, batch)
    model.eval()
    logits = model(**batch).logits
    model.train()

    handle = apply_jenga(model, JengaConfig.preset("lora", fused=False))
    assert_step_is_identical(model, batch, loss, gradients)
    handle.undo()

    handle = apply_jenga(model, jenga())
    with handle.disabled():
        assert_step_is_identical(model, batch, loss, gradients)
    unlabelled = {name: tensor for name, tensor in batch.items() if name != "labels"}
    assert model(**unlabelled).logits.shape == logits.shape  # no labels: dense, also in train mode
    model.eval()
    assert_bit_identical("logits in eval mode", model(**batch).logits, logits)
    ids = batch["input_ids"][:1, :20]
    with torch.no_grad():
        patched = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        handle.undo()
        assert_bit_identical("generation", patched, model.generate(input_ids=ids, max_new_tokens=5, do_sample=False))


def assert_step_is_identical(
    model: nn.Module, batch: dict[str, Tensor], loss: Tensor, gradients: dict[str, Tensor]
) -> None:
    our_loss, our_gradients = step(model, batch)
    assert_bit_identical("loss", our_loss, loss)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_bit_identical(name, our_gradients[name], gradient)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_step_2_keeping_everything_is_dense(model_type: str, attention: str, policy: str) -> None:
    model, batch = with_adapter(tiny_model(model_type, attention=attention)), tiny_batch()
    loss, gradients = step(model, batch)
    handle = apply_jenga(model, jenga(1.0, **POLICIES[policy]))
    our_loss, our_gradients = step(model, batch)
    assert handle.report().kept_fraction == (1.0,) * 4
    assert_within_budget("keep_everything", ours=our_loss, truth=loss)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_within_budget("keep_everything", ours=our_gradients[name], truth=gradient)


@pytest.mark.parametrize("tied", [False, True])
def test_step_2_with_all_weights_trained_and_without_a_mask(tied: bool) -> None:
    model, batch = tiny_model(tie_word_embeddings=tied), tiny_batch(batch=1, padded=False)
    del batch["attention_mask"]
    loss, gradients = step(model, batch)
    apply_jenga(model, jenga(1.0))
    our_loss, our_gradients = step(model, batch)
    assert_within_budget("keep_everything", ours=our_loss, truth=loss)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_within_budget("keep_everything", ours=our_gradients[name], truth=gradient)


def test_step_2_under_gradient_accumulation() -> None:
    """transformers divides by the labels of the whole step; two unequal micro-batches must weigh alike."""
    model, batch = tiny_model(), tiny_batch(batch=3)
    labels = int((batch["labels"][:, 1:] != -100).sum())
    rows = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 1), slice(1, 3))]
    dense = [step(model, row, num_items_in_batch=labels)[0] for row in rows]
    apply_jenga(model, jenga(1.0))
    ours = [step(model, row, num_items_in_batch=labels)[0] for row in rows]
    for our_loss, loss in zip(ours, dense, strict=True):
        assert_within_budget("keep_everything", ours=our_loss, truth=loss)
    assert sum(loss.item() for loss in ours) == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if not name.startswith("opt")])
def test_step_2_with_packed_documents(model_type: str, policy: str) -> None:
    model = tiny_model(model_type)
    input_ids = tiny_batch(batch=1, tokens=70)["input_ids"]
    positions = torch.cat([torch.arange(41), torch.arange(29)])[None]
    labels = input_ids.clone()
    labels[0, 41] = -100  # the first token of a document follows nothing
    batch = {"input_ids": input_ids, "position_ids": positions, "labels": labels}
    loss, gradients = step(model, batch, use_cache=False)  # with a cache, transformers mixes packed documents
    handle = apply_jenga(model, jenga(1.0, **POLICIES[policy]))
    our_loss, our_gradients = step(model, batch)
    assert handle.report().num_blocks == 6 + 4
    assert_within_budget("keep_everything", ours=our_loss, truth=loss)
    for name, gradient in gradients.items():
        assert_within_budget("keep_everything", ours=our_gradients[name], truth=gradient)


def test_step_3_undo_is_bit_identical() -> None:
    model, batch = with_adapter(tiny_model()), tiny_batch()
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    loss, gradients = step(model, batch)
    handle = apply_jenga(model, jenga())
    assert step(model, batch)[0] != loss
    handle.undo()
    handle.undo()  # harmless
    assert_step_is_identical(model, batch, loss, gradients)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


def test_patching_one_instance_leaves_another_alone() -> None:
    patched, other, batch = tiny_model(), tiny_model(), tiny_batch()
    loss, gradients = step(other, batch)
    apply_jenga(patched, jenga())
    assert_step_is_identical(other, batch, loss, gradients)


@pytest.mark.parametrize("policy", ["carried", "carried-loss-on-all", "per-layer"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt-post-norm"])
def test_gradient_checkpointing_changes_nothing(model_type: str, policy: str) -> None:
    fewer_mlps = {} if model_type.startswith("opt") else {"mlp_keep_fraction": 0.5}
    model, batch = with_adapter(tiny_model(model_type)), tiny_batch()
    apply_jenga(model, jenga(0.4, score="random", **POLICIES[policy], **fewer_mlps))
    torch.manual_seed(5)
    loss, gradients = step(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    torch.manual_seed(5)
    our_loss, our_gradients = step(model, batch)
    assert_bit_identical("loss", our_loss, loss)
    for name, gradient in gradients.items():
        assert_bit_identical(name, our_gradients[name], gradient)


def test_the_preset_defers_selection_to_the_middle_layer() -> None:
    assert JengaConfig.preset("jenga").selection == SelectionConfig()
    assert SelectionConfig().below_entry == "forward_only"
    assert SelectionConfig(scope="per_layer").below_entry == "involved"
    handle = apply_jenga(tiny_model(layers=6), JengaConfig.preset("jenga"))
    assert handle.entry_layer == 3
    assert handle.score == "exact"

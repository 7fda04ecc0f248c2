"""Whose forward runs: the model's own, somebody else's, ours, and that of a copy."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from jenga_core import JengaConfig, apply_jenga
from jenga_core.errors import ConfigError, UnsupportedModelError
from jenga_core.patching.apply import handle_of
from tests.patching.test_parity import step, with_adapter
from tests.support.tiny import tiny_batch, tiny_model

DENSE = JengaConfig.preset("lora")
KEEP_ALL = JengaConfig.preset("jenga", keep_fraction=1.0, selection={"block_tokens": 8, "entry_layer": 2})
DEFERRED = JengaConfig.preset("jenga", selection={"block_tokens": 8, "entry_layer": 2})


def assert_step_gives(
    model: nn.Module, batch: dict[str, Tensor], expected: Tensor, gradients: dict[str, Tensor], *, atol: float
) -> None:
    loss, found = step(model, batch)
    assert torch.allclose(loss, expected, atol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, atol=atol), name


def louder(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: 1.5 * forward(*args, **kwargs)


@pytest.mark.parametrize(
    "config",
    [DENSE, JengaConfig.preset("lora", recompute="full"), KEEP_ALL],
    ids=["dense", "recomputed", "deferred"],
)
def test_a_layer_that_does_more_than_add_its_mlp_has_its_gradient(config: JengaConfig) -> None:
    model, batch = with_adapter(tiny_model()), tiny_batch(padded=False)
    layer = model.get_base_model().model.layers[1]  # type: ignore[operator]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: (lambda y: y * (1 + 0.3 * y))(forward(*args, **kwargs))
    expected, gradients = step(model, batch)
    apply_jenga(model, config)
    assert_step_gives(model, batch, expected, gradients, atol=1e-4)


@pytest.mark.parametrize("inherits", [True, False])
def test_what_is_wrapped_around_a_lean_forward_is_seen(inherits: bool) -> None:
    """functools.wraps and accelerate's hooks hand the attributes of a forward on to what wraps it."""
    model, batch = with_adapter(tiny_model()), tiny_batch(padded=False)
    wrap_mlps(model, inherits)
    expected, gradients = step(model, batch)
    for mlp in mlps_of(model):
        del mlp.forward
    apply_jenga(model, KEEP_ALL)
    wrap_mlps(model, inherits)
    assert_step_gives(model, batch, expected, gradients, atol=1e-4)


def mlps_of(model: nn.Module) -> list[nn.Module]:
    return [layer.mlp for layer in model.get_base_model().model.layers]  # type: ignore[operator]


def wrap_mlps(model: nn.Module, inherits: bool) -> None:
    """Put around every MLP's forward what changes its output."""
    for mlp in mlps_of(model):

        def changed(*args: Any, forward: Callable[..., Tensor] = mlp.forward, **kwargs: Any) -> Tensor:
            y = forward(*args, **kwargs)
            return y * (1 + y)

        mlp.forward = functools.wraps(mlp.forward)(changed) if inherits else changed


def test_an_old_handle_undone_again_leaves_the_new_one() -> None:
    model = tiny_model()
    first = apply_jenga(model, DENSE)
    first.undo()
    second = apply_jenga(model, DEFERRED)
    first.undo()
    assert handle_of(model) is second


def test_a_pickled_copy_is_unpatched_and_can_be_patched() -> None:
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch).loss
    apply_jenga(model, DEFERRED)
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(**batch).loss, expected)
    assert handle_of(copied) is None
    apply_jenga(copied, KEEP_ALL)
    assert torch.allclose(copied(**batch).loss, expected, atol=1e-5)


def test_a_wrapped_model_is_refused_by_name() -> None:
    model = tiny_model()
    model.forward = functools.partial(model.forward)
    with pytest.raises(ConfigError, match=r"forward is functools.partial, which training with Jenga would bypass"):
        apply_jenga(model, DENSE)


@pytest.mark.parametrize("name", ["mlp", "input_layernorm"])
def test_a_forward_that_somebody_replaced_in_an_instance_is_obeyed(name: str) -> None:
    model, batch = tiny_model().requires_grad_(False), tiny_batch()
    module = getattr(model.model.layers[1], name)
    module.forward = louder(module.forward)
    expected = model(**batch).loss
    apply_jenga(model, DENSE)
    assert torch.allclose(model(**batch).loss, expected, atol=1e-5)
    assert torch.equal(model.eval()(**batch).loss, expected)


def test_a_forward_that_somebody_replaced_in_a_class_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaAttention.forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out, weights = forward(self, *args, **kwargs)
        return 2 * out, weights

    monkeypatch.setattr(LlamaAttention, "forward", doubled)
    model, batch = with_adapter(tiny_model()), tiny_batch()
    expected, gradients = step(model, batch)
    apply_jenga(model, DENSE)
    assert_step_gives(model, batch, expected, gradients, atol=1e-5)


def test_a_copy_is_unpatched_and_can_be_patched_itself() -> None:
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch).loss
    apply_jenga(model, DEFERRED)
    copied = copy.deepcopy(model)
    assert handle_of(copied) is None
    loss = copied(**batch).loss
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    apply_jenga(copied, KEEP_ALL)
    assert torch.allclose(copied(**batch).loss, expected, atol=1e-5)
    assert handle_of(copied) is not handle_of(model) is not None


def test_modules_that_peft_copies_after_it_are_trained() -> None:
    from peft import LoraConfig, get_peft_model

    model, batch = tiny_model(), tiny_batch()
    handle = apply_jenga(model, DENSE)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["input_layernorm"]))
    expected, gradients = step_unpatched(adapted, batch)
    loss, found = step(adapted, batch)
    assert torch.allclose(loss, expected, atol=1e-5)
    trained = [name for name in gradients if "input_layernorm" in name]
    assert trained and all(torch.allclose(found[name], gradients[name], atol=1e-5) for name in trained)
    handle.undo()
    assert torch.equal(adapted(**batch).loss, expected)


def step_unpatched(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    handle = handle_of(model)
    assert handle is not None
    with handle.disabled():
        return step(model, batch)


def test_what_was_wrapped_around_ours_stays_when_ours_goes() -> None:
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch).loss
    handle = apply_jenga(model, DEFERRED)
    ours, calls = model.forward, []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.keys())
        return ours(*args, **kwargs)

    model.forward = wrapper
    assert handle_of(model) is handle
    handle.undo()
    assert handle_of(model) is None
    assert torch.equal(model(**batch).loss, expected) and len(calls) == 1


def test_a_patched_forward_still_names_its_arguments() -> None:
    """transformers' Trainer drops the columns of a dataset that the model's forward does not name."""
    model = tiny_model()
    names = list(inspect.signature(model.forward).parameters)
    apply_jenga(model, DENSE)
    assert list(inspect.signature(model.forward).parameters) == names


def test_a_forward_of_the_whole_model_is_not_bypassed() -> None:
    class Mine(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = Mine(tiny_model().config)
    with pytest.raises(ConfigError, match=r"Mine.forward, which training with Jenga would bypass"):
        apply_jenga(model, DENSE)
    apply_jenga(model, JengaConfig.preset("lora", fused=False))  # there it is called


def test_the_head_is_the_one_that_the_model_has_now() -> None:
    model, batch = tiny_model(), tiny_batch()
    apply_jenga(model, DENSE)
    model.resize_token_embeddings(300)
    expected, _ = step_unpatched(model, batch)
    loss, gradients = step(model, batch)
    assert torch.allclose(loss, expected, atol=1e-5)
    assert gradients["lm_head.weight"].shape[0] == 300
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(UnsupportedModelError, match=r"got torch.nn.modules.container.Sequential"):
        model(**batch)


def test_a_hook_that_changes_what_the_exact_pass_computed_is_refused() -> None:
    model, batch = with_adapter(tiny_model()), tiny_batch()
    apply_jenga(model, DEFERRED)
    layer = model.get_base_model().model.layers[0]  # type: ignore[operator]
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _module, _given, y: seen.append(y))
    model(**batch)
    assert len(seen) == 1

    def change_in_place(_module: nn.Module, _given: Any, y: Tensor) -> None:
        y.mul_(1.1)

    for change in (lambda _module, _given, y: 1.1 * y, change_in_place):
        hook = layer.register_forward_hook(change)
        with pytest.raises(ConfigError, match="what layer 0 computed was changed before it came to layer 1"):
            model(**batch)
        hook.remove()
    model(**batch)


@pytest.mark.parametrize("config", [JengaConfig.preset("lora", recompute="full"), KEEP_ALL], ids=["dense", "deferred"])
def test_a_hook_on_the_mlp_is_in_the_gradient(config: JengaConfig) -> None:
    model, batch = with_adapter(tiny_model()), tiny_batch(padded=False)
    for layer in model.get_base_model().model.layers:  # type: ignore[operator]
        layer.mlp.register_forward_hook(lambda _module, _given, y: y * (1 + y))
    expected, gradients = step(model, batch)
    apply_jenga(model, config)
    assert_step_gives(model, batch, expected, gradients, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shift_labels": torch.zeros(1, dtype=torch.long)}, "shift_labels is given, .* the next token's loss"),
        ({"ignore_index": 3}, "ignore_index is given"),
        ({"output_hidden_states": True}, "output_hidden_states is asked for, .* gives the loss alone"),
        ({"output_attentions": True}, "output_attentions is asked for"),
    ],
)
@pytest.mark.parametrize("config", [DENSE, DEFERRED], ids=["dense", "deferred"])
def test_what_asks_for_another_loss_or_more_is_refused(config: JengaConfig, given: dict[str, Any], words: str) -> None:
    model = tiny_model()
    apply_jenga(model, config)
    with pytest.raises(ConfigError, match=words):
        model(**tiny_batch(), **given)
    assert model(**tiny_batch(), output_attentions=False).loss > 0


def test_another_loss_function_and_a_watched_head_are_refused() -> None:
    model = tiny_model()
    apply_jenga(model, DENSE)
    hook = model.lm_head.register_forward_hook(lambda _module, _given, y: 2 * y)
    with pytest.raises(ConfigError, match="head has a hook"):
        model(**tiny_batch())
    hook.remove()
    model(**tiny_batch())
    model.loss_function = lambda logits, labels, **_: logits.sum()
    with pytest.raises(ConfigError, match="the model's loss_function is <function"):
        model(**tiny_batch())


def test_a_tuple_where_one_is_asked_for() -> None:
    model, batch = tiny_model(), tiny_batch()
    apply_jenga(model, DEFERRED)
    (loss,) = model(**batch, return_dict=False)
    assert torch.equal(loss, model(**batch).loss)


def test_training_without_labels_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = tiny_model(), tiny_batch()
    apply_jenga(model, DEFERRED)
    del batch["labels"]
    with caplog.at_level(logging.WARNING):
        model.eval()(**batch)
        with torch.no_grad():
            model.train()(**batch)
        assert caplog.messages == []
        model(**batch)
        model(**batch)
    assert [message.partition(",")[0] for message in caplog.messages] == ["a forward in train mode has no labels"]

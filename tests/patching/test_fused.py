"""Lean modules compute what the modules they stand for compute, keep less for backward, and go without a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from jenga_core.errors import ConfigError
from jenga_core.memory.accounting import saved_activations
from jenga_core.patching import fused as fused_module
from jenga_core.patching import fused_attention
from jenga_core.patching.architectures import architecture_of
from jenga_core.patching.fused import Fused, fuse
from jenga_core.patching.parts import parts_of
from tests.support.assertions import assert_bit_identical, assert_within_budget
from tests.support.tiny import MODEL_TYPES, tiny_batch, tiny_model

LEAN_PER_LAYER = {  # linear layers (LoRA's, and OPT's before its ReLU), norms, MLP, attention
    "llama": (4, 2, 1, 1),
    "mistral": (4, 2, 1, 1),
    "qwen2": (4, 2, 1, 1),
    "qwen3": (4, 4, 1, 1),
    "gemma2": (4, 4, 1, 0),
    "gemma3_text": (4, 6, 1, 0),
    "phi3": (2, 2, 1, 0),
    "opt": (5, 0, 0, 1),
    "opt-post-norm": (5, 0, 0, 1),
}


def adapted(model: nn.Module, targets: list[str] | None = None, **lora: Any) -> PeftModel:
    torch.manual_seed(3)
    targets = targets or list(architecture_of(model.config.model_type).adapter_targets)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide the gradients of lora_A
            nn.init.normal_(parameter, std=0.1)
    return model


def fused(model: nn.Module, **options: Any) -> Fused:
    found = fuse(parts_of(model), **options)
    found.begin_step(active=True)
    return found


def step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def assert_same_step(model: nn.Module, batch: dict[str, Tensor], dense: tuple[Tensor, dict[str, Tensor]]) -> None:
    loss, gradients = step(model, batch)
    assert_within_budget("fused", ours=loss, truth=dense[0])
    assert gradients.keys() == dense[1].keys()
    for name, gradient in dense[1].items():
        assert_within_budget("fused", ours=gradients[name], truth=gradient)


def assert_identical_step(model: nn.Module, batch: dict[str, Tensor], dense: tuple[Tensor, dict[str, Tensor]]) -> None:
    loss, gradients = step(model, batch)
    assert_bit_identical("loss", loss, dense[0])
    for name, gradient in dense[1].items():
        assert_bit_identical(name, gradients[name], gradient)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("recompute_mlp", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_same_loss_and_gradients(model_type: str, recompute_mlp: bool, attention: str) -> None:
    model, batch = adapted(tiny_model(model_type, attention=attention)), tiny_batch()
    dense = step(model, batch)
    lean = fused(model, recompute_mlp=recompute_mlp and not model_type.startswith("opt"))
    kinds = Counter(type(module).__name__.lower() for module in lean.modules)
    counts = (
        sum(n for kind, n in kinds.items() if kind.endswith(end)) for end in ("linear", "norm", "mlp", "attention")
    )
    per_layer = LEAN_PER_LAYER[model_type]
    last_norm = 0 if model_type.startswith("opt") else 1
    assert tuple(counts) == tuple(4 * n + (last_norm if i == 1 else 0) for i, n in enumerate(per_layer))
    assert_same_step(model, batch, dense)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_undo_and_eval_and_inactive_are_bit_identical(model_type: str) -> None:
    model, batch = adapted(tiny_model(model_type)), tiny_batch()
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    state = sorted(model.state_dict())
    dense = step(model, batch)
    logits = model.eval()(**batch).logits
    lean = fused(model)
    assert_bit_identical("logits", model(**batch).logits, logits)
    assert sorted(model.state_dict()) == state
    model.train()
    lean.begin_step(active=False)
    assert_identical_step(model, batch, dense)
    lean.begin_step(active=True)
    lean.undo()
    lean.undo()  # harmless
    assert_identical_step(model, batch, dense)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("recompute_mlp", [False, True])
def test_what_is_kept_for_backward(recompute_mlp: bool) -> None:
    """Of a token in a layer: x, q, k, v, attention's output, x after it, gate and up. Neither norm's output."""
    E, F, heads, key_heads, D, r, layers, tokens = 32, 48, 4, 2, 8, 4, 4, 77
    vectors = 3 * E + (heads + 2 * key_heads) * D + (0 if recompute_mlp else 2 * F) + 4 * r
    numbers = 2 + heads  # of each norm, and of each head's softmax
    in_a_layer = 2 * vectors + 4 * numbers
    outside = 2 * E + 4 + 2 * 2 * D  # the last norm, and the angles
    model = adapted(tiny_model().to(torch.bfloat16))
    fused(model, recompute_mlp=recompute_mlp)
    ids = tiny_batch(batch=1, tokens=tokens, padded=False)["input_ids"]
    with saved_activations(model) as saved:
        output = parts_of(model).decoder(input_ids=ids, use_cache=False)
    assert output.last_hidden_state.requires_grad
    of_the_first_norm = 4  # whose input needs no gradient
    assert saved.total_bytes == tokens * (layers * in_a_layer + outside - of_the_first_norm)


@pytest.mark.parametrize(
    "targets", [["q_proj", "gate_proj"], ["down_proj"], ["o_proj", "up_proj", "down_proj"], ["v_proj"]], ids=str
)
def test_any_linear_layer_may_have_an_adapter(targets: list[str]) -> None:
    model, batch = adapted(tiny_model("qwen2"), targets), tiny_batch()
    dense = step(model, batch)
    fused(model)
    assert_same_step(model, batch, dense)


def test_weights_that_are_trained_get_their_gradient() -> None:
    model, batch = tiny_model(), tiny_batch()
    dense = step(model, batch)
    lean = fused(model)
    assert_same_step(model, batch, dense)
    lean.undo()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name or "up_proj" in name)
    dense = step(model, batch)
    fused(model)
    assert_same_step(model, batch, dense)


@pytest.mark.parametrize("case", ["switched off", "merged", "dropout", "dora", "two adapters", "bias"])
def test_adapters_that_are_not_plain_are_left_to_peft(case: str) -> None:
    lora = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}, "bias": {"lora_bias": True}}.get(case, {})
    model, batch = adapted(tiny_model("qwen2"), ["q_proj", "k_proj"], **lora), tiny_batch()
    if case == "merged":
        model.merge_adapter()
    if case == "two adapters":
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])

    def losses() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        if case == "switched off":
            with model.disable_adapter():
                return model(**batch).loss, model(**batch).logits
        return model(**batch).loss, model(**batch).logits

    loss, logits = losses()
    fused(model)
    our_loss, our_logits = losses()
    assert_within_budget("fused", ours=our_loss.detach(), truth=loss.detach())
    assert_within_budget("fused", ours=our_logits.detach(), truth=logits.detach())


@pytest.mark.parametrize("name", ["mlp.down_proj", "mlp.act_fn", "self_attn.q_proj", "self_attn.v_proj.lora_A.default"])
def test_a_hook_is_called(name: str) -> None:
    model, batch = adapted(tiny_model()), tiny_batch()
    fused(model)
    called: list[str] = []
    layer = parts_of(model).layers[1]
    layer.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
    model(**batch)
    assert called == [name]


def test_gradient_checkpointing_changes_nothing() -> None:
    model, batch = adapted(tiny_model()), tiny_batch()
    fused(model)
    dense = step(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    assert_identical_step(model, batch, dense)


def test_autocast_is_left_to_the_modules() -> None:
    model, batch = adapted(tiny_model()), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
        fused(model)
        assert_bit_identical("loss", model(**batch).loss, loss)


def test_opt_attends_and_rectifies_in_lean_form() -> None:
    model, batch = adapted(tiny_model("opt")), tiny_batch()
    dense = step(model, batch)
    lean = fused(model)
    with (
        mock.patch.object(fused_module, "relu_linear", wraps=fused_module.relu_linear) as rectified,
        mock.patch.object(fused_attention, "lora_linears", wraps=fused_attention.lora_linears) as projected,
        mock.patch.object(nn.functional, "relu", wraps=nn.functional.relu) as again,
    ):
        assert_same_step(model, batch, dense)
    assert [len(call.args[1]) for call in projected.call_args_list] == [3] * 4
    assert (rectified.call_count, again.call_count) == (4, 0)
    lean.undo()
    assert not any("forward" in module.__dict__ for module in parts_of(model).decoder.modules())
    assert_identical_step(model, batch, dense)


def _adapt(model: PeftModel) -> None:
    model.add_adapter("another", LoraConfig(r=4, target_modules=["fc1"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "another"])


@pytest.mark.parametrize(
    "change",
    [
        _adapt,
        lambda model: [
            each.fc1.register_forward_hook(lambda _m, _g, out: out + 0.1) for each in parts_of(model).layers
        ],
        lambda model: [
            each.activation_fn.register_forward_pre_hook(lambda _m, given: (given[0] + 0.3,))
            for each in parts_of(model).layers
        ],
        lambda model: [setattr(each, "activation_fn", nn.GELU()) for each in parts_of(model).layers],
    ],
    ids=["adapter on fc1", "hook on fc1", "hook on the activation", "another activation"],
)
def test_what_comes_between_fc1_and_its_relu_later_is_heard(change: Callable[[Any], object]) -> None:
    model, batch = adapted(tiny_model("opt"), ["q_proj"]), tiny_batch()
    lean = fused(model)
    change(model)
    ours = step(model, batch)
    lean.begin_step(active=False)
    assert_same_step(model, batch, ours)
    with mock.patch.object(fused_module, "relu_linear") as rectified:
        lean.begin_step(active=True)
        model(**batch)
    assert rectified.call_count == 0


def test_recompute_that_no_module_can_honour_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"OPTForCausalLM.*recompute='full'"):
        fuse(parts_of(adapted(tiny_model("opt"))), recompute_mlp=True)
    with pytest.raises(ConfigError, match="4 of 4 MLPs"):
        fuse(parts_of(adapted(tiny_model(), ["up_proj"])), recompute_mlp=True)

"""Ways to run a layer: what runs, how often, and what it leaves."""

from __future__ import annotations

import gc
import weakref
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from jenga_core import JengaConfig, apply_jenga
from jenga_core.elimination.selection import Selection
from jenga_core.errors import ConfigError
from jenga_core.layers.attention import mask_among_involved
from jenga_core.memory.accounting import saved_activations
from jenga_core.memory.offload import HostMemory
from jenga_core.patching import layer_runs, routes
from jenga_core.patching.layer_runs import LayerRuns
from tests.patching.test_parity import with_adapter
from tests.support.tiny import MODEL_TYPES, tiny_batch, tiny_model


def deferred(recompute: str = "none", **selection: object) -> JengaConfig:
    return JengaConfig.preset(
        "jenga", recompute=recompute, selection={"block_tokens": 8, "entry_layer": 2, **selection}
    )


def count_runs(module: nn.Module) -> list[int]:
    """Rows of each run of the module, in order."""
    runs: list[int] = []
    module.register_forward_hook(lambda _m, given, _out: runs.append(given[0].shape[-2]))
    return runs


def test_rows_below_the_entry_layer_run_in_backward_only() -> None:
    model, batch = with_adapter(tiny_model()), tiny_batch(batch=1, tokens=80, padded=False)
    handle = apply_jenga(model, deferred())
    runs = [count_runs(layer.input_layernorm) for layer in handle.parts.layers]
    loss = model(**batch).loss
    rows = 8 * len(handle.report().spans[-1].blocks)
    assert 0 < rows < 80
    assert runs[:2] == [[80], [80]]
    assert runs[2:] == [[80, rows], [rows]]  # the layer that selects scores all tokens first
    loss.backward()
    assert runs[:2] == [[80, rows], [80, rows]]


def test_recomputed_layers_run_twice() -> None:
    model, batch = with_adapter(tiny_model()), tiny_batch(batch=1, tokens=80, padded=False)
    handle = apply_jenga(model, deferred("full"))
    runs = count_runs(handle.parts.layers[3].input_layernorm)
    model(**batch).loss.backward()
    assert len(runs) == 2


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_with_dropout_runs_again_for_its_rows(dropout: float) -> None:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"]))
    batch = tiny_batch(batch=2, tokens=80)
    handle = apply_jenga(model, deferred())
    runs = count_runs(handle.parts.layers[0].input_layernorm)
    loss = model(**batch).loss
    assert len(runs) == (2 if dropout else 1)
    loss.backward()
    assert len(runs) == 2
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 8
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_the_second_run_without_dropout_is_the_replay() -> None:
    """Forced to run again, a layer that drops nothing must give what replay gives."""
    model, batch = with_adapter(tiny_model().double()), tiny_batch(batch=3)
    apply_jenga(model, deferred())

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss = model(**batch).loss
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return loss.detach(), gradients

    replayed = step()
    with mock.patch("jenga_core.patching.layer_runs.random_state", side_effect=range(1000)):
        run_again = step()
    torch.testing.assert_close(run_again[0], replayed[0], rtol=1e-12, atol=1e-12)
    assert len(run_again[1]) == len(replayed[1]) > 0
    for again, known in zip(run_again[1], replayed[1], strict=True):
        torch.testing.assert_close(again, known, rtol=1e-9, atol=1e-12)


def test_recompute_keeps_less() -> None:
    kept = {}
    for recompute in ("none", "mlp", "full"):
        model, batch = with_adapter(tiny_model()), tiny_batch(batch=1, tokens=160, padded=False)
        apply_jenga(model, deferred(recompute))
        with saved_activations(model) as saved:
            model(**batch)
        kept[recompute] = saved.total_bytes
    assert kept["full"] < kept["mlp"] < kept["none"]


@pytest.mark.parametrize("policy", [{"recompute": "full"}, {"preset": "lora", "recompute": "full"}])
def test_a_recomputed_layer_may_not_drop_out(policy: dict[str, str]) -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj"]))
    apply_jenga(model, JengaConfig.parse({**policy, "selection": {"entry_layer": 0}}))
    with pytest.raises(ConfigError, match="recompute='full' computes layer 0 twice"):
        model(**tiny_batch(batch=1))


def test_attention_dropout_is_refused() -> None:
    model, batch = tiny_model(attention_dropout=0.2), tiny_batch(batch=1)
    apply_jenga(model, deferred())
    with pytest.raises(ConfigError, match=r"attention dropout is 0\.2"):
        model(**batch)


def test_scores_are_the_same_in_spite_of_attention_dropout() -> None:
    """Selecting attends to nothing, so a rate that only the involved rows meet is transformers' to apply."""
    model, batch = tiny_model(attention_dropout=0.2), tiny_batch(batch=1)
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": 8, "below_entry": "involved"}))
    assert model(**batch).loss.requires_grad
    assert handle.report().spans


@pytest.mark.parametrize("key_heads", [1, 2])
def test_full_leaves_of_a_layer_its_input_alone(key_heads: int) -> None:
    """Until the set is chosen. Then that stays, or keys and values are made again, if they and the rows are smaller;
    they must be those that were seen."""
    left, given, exactly = {}, {}, LayerRuns.exactly
    for recompute in ("mlp", "full"):
        model = with_adapter(tiny_model(num_key_value_heads=key_heads).double())
        batch = tiny_batch(batch=1, tokens=80, padded=False)
        apply_jenga(model, deferred(recompute))
        left[recompute] = layers = []

        def spy(*args: object) -> object:
            layers.append(exactly(*args))  # noqa: B023
            return layers[-1]  # noqa: B023

        with (
            mock.patch.object(LayerRuns, "exactly", spy),
            mock.patch.object(layer_runs, "replay", wraps=layer_runs.replay) as replay,
        ):
            model(**batch)
        given[recompute] = [call.args[3] for call in replay.call_args_list]
    assert [len(left["mlp"]), len(left["full"])] == [2, 4]  # the upper layers' rows, too, are replayed with full
    assert all(tensor is None for _, layer in left["full"] for tensor in layer.attended.tensors)
    for index, (before, after) in enumerate(zip(given["mlp"], given["full"][:2], strict=True)):
        if key_heads == 1:
            assert [tensor is None for tensor in after] == [False, False, False, True, True]
            for again, seen in zip(after[:3], before, strict=False):
                torch.testing.assert_close(again, seen)
        else:
            assert [tensor is left["full"][index][1].x_BxE for tensor in after] == [True]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text", "phi3"])
@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("unselected", ["eliminated", "forward_only"])
def test_full_has_the_gradients_of_none_whichever_it_keeps(model_type: str, key_heads: int, unselected: str) -> None:
    gradients = []
    for recompute in ("none", "full"):
        torch.manual_seed(0)
        model = with_adapter(tiny_model(model_type, num_key_value_heads=key_heads).double())
        apply_jenga(model, deferred(recompute, unselected=unselected))
        model(**tiny_batch(batch=3)).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 8
    for again, known in zip(*gradients, strict=True):
        torch.testing.assert_close(again, known, rtol=1e-9, atol=1e-12)


def test_dropout_that_full_would_draw_again_is_refused_where_all_layers_are_exact() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_dropout=0.5, target_modules=["k_proj", "v_proj"]))
    apply_jenga(model, deferred("full", unselected="forward_only"))
    with pytest.raises(ConfigError, match="recompute='full' computes layer 0 twice"):
        model(**tiny_batch(batch=1))


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_is_kept_holds_nothing_else(model_type: str, recompute: str) -> None:
    model = with_adapter(tiny_model(model_type, num_key_value_heads=1))
    batch = tiny_batch(batch=1, tokens=80, padded=False)
    apply_jenga(model, deferred(recompute))
    with mock.patch.object(layer_runs, "replay", wraps=layer_runs.replay) as replay:
        model(**batch)
    kept = [call.args[3] for call in replay.call_args_list[:2]]
    assert len(kept) == 2
    for tensor in (tensor for tensors in kept for tensor in tensors if tensor is not None):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_without_gradient_nothing_is_made_again() -> None:
    model, batch = with_adapter(tiny_model()), tiny_batch(batch=1, tokens=80, padded=False)
    handle = apply_jenga(model, deferred("full"))
    runs = [count_runs(layer.input_layernorm) for layer in handle.parts.layers]
    with torch.no_grad():
        loss = model(**batch).loss
    assert [len(of_layer) for of_layer in runs] == [1, 1, 2, 1]  # the layer that selects scores first
    torch.testing.assert_close(loss, model(**batch).loss.detach())


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "opt"])
def test_autocast_on_a_float32_model(model_type: str, recompute: str) -> None:
    """Rotation leaves q and k in float32 where v is in bfloat16."""
    model, batch = with_adapter(tiny_model(model_type)), tiny_batch(batch=2, tokens=80)
    apply_jenga(model, deferred(recompute))
    true = model(**batch).loss.detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert abs(float(loss.detach() - true)) < 0.1
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "lora"},
        {},
        {"selection": {"unselected": "forward_only"}},
        {"selection": {"below_entry": "involved"}},
        {"selection": {"below_entry": "involved", "unselected": "forward_only"}},
        {"selection": {"loss_on": "all"}},
        {"selection": {"scope": "per_layer", "loss_on": "all"}},
    ],
    ids=str,
)
def test_offload_changes_where_things_wait_and_no_gradient(
    model_type: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parcel of a CPU's is what was put into it; where it lies on a GPU: tests/gpu/test_offload.py."""
    monkeypatch.setattr(HostMemory, "of", classmethod(lambda cls, device: cls()))
    gradients, kept_bytes = [], []
    for offload in (False, True):
        torch.manual_seed(0)
        model, batch = with_adapter(tiny_model(model_type)), tiny_batch(batch=2, tokens=80)
        selection = {"block_tokens": 8, "entry_layer": 2, **changes.get("selection", {})}  # type: ignore[dict-item]
        apply_jenga(
            model, JengaConfig.parse({**changes, "selection": selection, "recompute": "full", "offload": offload})
        )
        with saved_activations(model) as saved:
            loss = model(**batch).loss
        kept_bytes.append(saved.total_bytes)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 8
    for without, with_offload in zip(*gradients, strict=True):
        assert torch.equal(without, with_offload)
    assert kept_bytes[1] < kept_bytes[0] / 2


def test_offload_lets_the_gradient_through_to_the_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostMemory, "of", classmethod(lambda cls, device: cls()))
    gradients = []
    for offload in (False, True):
        model = tiny_model()
        apply_jenga(model, deferred("full").model_copy(update={"offload": offload}))
        model(**tiny_batch(batch=2, tokens=80)).loss.backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert bool(gradients[0].abs().sum() > 0)
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_no_mask_waits_for_backward(recompute: str, key_heads: int) -> None:
    """Those of padded batches are as large as tokens squared."""
    model = with_adapter(tiny_model(num_key_value_heads=key_heads))
    handle = apply_jenga(model, deferred(recompute))
    masks: list[weakref.ref[torch.Tensor]] = []

    def note(_layer: nn.Module, _given: object, named: dict[str, torch.Tensor]) -> None:
        masks.append(weakref.ref(named["attention_mask"]))

    def of_rows(mask: torch.Tensor, selection: Selection) -> torch.Tensor | None:
        made = mask_among_involved(mask, selection)
        if made is not None:
            masks.append(weakref.ref(made))
        return made

    hook = handle.parts.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    with mock.patch.object(routes, "mask_among_involved", of_rows):
        loss = model(**tiny_batch(batch=3)).loss
    hook.remove()
    handle.last = None
    gc.collect()
    assert len(masks) == 2
    assert [mask() for mask in masks] == [None, None]
    loss.backward()


def test_on_a_cpu_offload_saves_nothing_and_says_so() -> None:
    kept_bytes = []
    for offload in (False, True):
        model, batch = with_adapter(tiny_model()), tiny_batch(batch=2, tokens=80)
        apply_jenga(model, JengaConfig.preset("lora", recompute="full", offload=offload))
        with saved_activations(model) as saved:
            model(**batch)
        kept_bytes.append(saved.total_bytes)
    assert kept_bytes[0] == kept_bytes[1] > 0


@pytest.mark.parametrize("preset", ["lora", "jenga"])
def test_autocast_on_a_bfloat16_model_with_float32_norms(preset: str) -> None:
    """What preparing a model for training in few bits makes of it."""
    model = with_adapter(tiny_model().bfloat16())
    for name, module in model.named_modules():
        if "norm" in name:
            module.float()
    batch = tiny_batch(batch=1, padded=False)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch).loss
        apply_jenga(model, JengaConfig.preset(preset, keep_fraction=1.0))
        loss = model(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)

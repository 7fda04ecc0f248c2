"""What cannot be done is refused by name; what was done is reported."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from jenga_core import JengaConfig, apply_jenga
from jenga_core.errors import ConfigError, UnsupportedModelError
from tests.patching.test_parity import with_adapter
from tests.support.tiny import tiny_batch, tiny_model


def test_unsupported_models_are_refused_with_the_supported_ones() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(UnsupportedModelError, match=r"'gpt2' is not supported; supported are llama, mistral"):
        apply_jenga(gpt2, JengaConfig.preset("jenga"))
    with pytest.raises(UnsupportedModelError, match="expected a transformers causal language model"):
        apply_jenga(nn.Linear(2, 2), JengaConfig.preset("jenga"))


def test_a_model_that_sees_images_is_refused() -> None:
    text = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    vision = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    with pytest.raises(UnsupportedModelError, match=r"one of text alone \(model type 'gemma3_text'\) is"):
        apply_jenga(model, JengaConfig.preset("jenga"))


@pytest.mark.parametrize(
    ("model_type", "setting", "message"),
    [
        ("opt", {"layerdrop": 0.1}, "layerdrop is 0.1"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attends to later tokens"),
        ("mistral", {"_attn_implementation_internal": "flash_attention_2"}, "sliding window of 20 tokens"),
        ("llama", {"_attn_implementation_internal": "flex_attention"}, "one of sdpa, eager, flash_attention_2"),
    ],
)
def test_what_a_supported_model_may_not_do(model_type: str, setting: dict[str, Any], message: str) -> None:
    model = tiny_model(model_type)
    for name, value in setting.items():
        setattr(model.config, name, value)
    with pytest.raises(UnsupportedModelError, match=message):
        apply_jenga(model, JengaConfig.preset("jenga"))


def test_a_head_that_is_not_a_plain_linear_is_refused() -> None:
    model = tiny_model()
    model.lm_head = nn.Linear(32, 256, bias=True)
    with pytest.raises(UnsupportedModelError, match=r"plain torch\.nn\.Linear without bias, got one with a bias"):
        apply_jenga(model, JengaConfig.preset("jenga"))


def test_settings_that_do_not_fit_the_model() -> None:
    model = tiny_model(layers=4)
    with pytest.raises(ConfigError, match="entry_layer 4 is past the model's last layer; it has 4 layers"):
        apply_jenga(model, JengaConfig.preset("jenga", selection={"entry_layer": 4}))
    apply_jenga(model, JengaConfig.preset("jenga"))
    with pytest.raises(ConfigError, match="patched already"):
        apply_jenga(model, JengaConfig.preset("jenga"))


def test_mlp_elimination_needs_an_mlp_module_and_eliminated_tokens() -> None:
    with pytest.raises(ConfigError, match="compute the MLP inside the layer"):
        apply_jenga(tiny_model("opt"), JengaConfig.preset("jenga", selection={"mlp_keep_fraction": 0.5}))
    with pytest.raises(ConfigError, match="needs unselected='eliminated'"):
        JengaConfig.preset("jenga", selection={"mlp_keep_fraction": 0.5, "unselected": "forward_only"})


def test_inputs_that_training_cannot_take() -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, padded=False)
    apply_jenga(model, JengaConfig.preset("jenga"))
    with pytest.raises(ConfigError, match="use_cache=False"):
        model(**batch, use_cache=True)
    mask = torch.ones(1, 1, 77, 77, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"attention_mask must be 2-D .* got 4-D"):
        model(**{**batch, "attention_mask": mask})
    with pytest.raises(ConfigError, match="layers are given 'cu_seq_lens_q'"):
        model(**batch, cu_seq_lens_q=torch.tensor([0, 77]))


def test_packed_documents_that_the_model_itself_would_mix() -> None:
    model, batch = tiny_model("opt"), tiny_batch(batch=1, padded=False)
    apply_jenga(model, JengaConfig.preset("jenga"))
    model(**batch, position_ids=torch.arange(77)[None])
    with pytest.raises(ConfigError, match="OPTForCausalLM would let the packed documents attend to each other"):
        model(**batch, position_ids=torch.cat([torch.arange(40), torch.arange(37)])[None])


def test_a_residual_stream_that_is_normed_has_no_path_for_forward_only_tokens() -> None:
    config = JengaConfig.preset("jenga", selection={"scope": "per_layer", "unselected": "forward_only"})
    apply_jenga(tiny_model("opt"), config)
    with pytest.raises(ConfigError, match="do_layer_norm_before=False"):
        apply_jenga(tiny_model("opt-post-norm"), config)


def test_deferred_selection_refuses_gradient_checkpointing() -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, padded=False)
    apply_jenga(model, JengaConfig.preset("jenga", selection={"below_entry": "forward_only"}))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ConfigError, match="the model's gradient checkpointing is on"):
        model(**batch)


def test_inputs_embeds_and_positional_input_ids() -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, padded=False)
    apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": 8}))
    by_name = model(**batch).loss
    by_position = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    embeds = model.get_input_embeddings()(batch["input_ids"])
    by_embeds = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert by_name == by_position == by_embeds


def test_labels_are_left_as_they_were() -> None:
    model, batch = tiny_model(), tiny_batch()
    before = copy.deepcopy(batch)
    apply_jenga(model, JengaConfig.preset("jenga"))
    model(**batch)
    for name, tensor in before.items():
        assert torch.equal(batch[name], tensor)


def test_sequences_shorter_than_a_block() -> None:
    model, batch = tiny_model(), tiny_batch(batch=2, tokens=5, padded=False)
    handle = apply_jenga(model, JengaConfig.preset("jenga"))
    dense = copy.deepcopy(batch)
    loss = model(**batch).loss
    assert handle.report().kept_fraction == (1.0,) * 4
    with handle.disabled():
        torch.testing.assert_close(loss, model(**dense).loss)


@pytest.mark.parametrize(
    ("kinds", "entry_layer"),
    [
        ("ssss ff", 4),  # three fifths of the layers is 3, which slides
        ("fffs fs", 4),
        ("sssf ss", 3),
        ("ffff ss", 3),
        ("ffss ss", 3),  # nothing above sees everything
    ],
)
def test_the_default_entry_layer_sees_everything(kinds: str, entry_layer: int) -> None:
    """A layer whose attention slides cannot tell what is asked of far blocks."""
    layer_types = [{"s": "sliding_attention", "f": "full_attention"}[kind] for kind in kinds.replace(" ", "")]
    model = tiny_model("gemma3_text", layers=6, layer_types=layer_types)
    assert apply_jenga(model, JengaConfig.preset("jenga")).entry_layer == entry_layer


def test_report() -> None:
    model, batch = tiny_model(), tiny_batch(batch=1, tokens=80, padded=False)
    handle = apply_jenga(
        model,
        JengaConfig.preset(
            "jenga",
            selection={"block_tokens": 8, "score": "recent", "below_entry": "involved", "target_fraction": 0.0},
        ),
    )
    assert "no training forward yet" in str(handle.report())
    model(**batch)
    report = handle.report()
    assert (report.enabled, report.score, report.entry_layer, report.num_blocks) == (True, "recent", 2, 10)
    assert report.kept_fraction == pytest.approx((1.0, 1.0, 0.4, 0.4))
    assert [(span.first_layer, span.last_layer, span.blocks) for span in report.spans] == [(2, 3, (0, 7, 8, 9))]
    assert "40% of tokens involved, blocks 0 7 8 9" in str(report)
    handle.undo()

    handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": 8}))
    model(**batch)
    assert handle.report().kept_fraction == pytest.approx((0.4,) * 4)  # below the entry layer, only gradients count
    assert handle.report().spans[0].first_layer == 0
    handle.undo()
    assert str(apply_jenga(model, JengaConfig.preset("lora")).report()) == "jenga: off (dense)"


def test_packed_documents_with_a_mask_are_refused() -> None:
    """transformers looks for packed documents only where no mask is given."""
    model, batch = tiny_model(), tiny_batch(batch=1, padded=False)
    apply_jenga(model, JengaConfig.preset("jenga"))
    positions = torch.cat([torch.arange(40), torch.arange(37)])[None]
    with pytest.raises(ConfigError, match="leave attention_mask out"):
        model(**batch, position_ids=positions)
    del batch["attention_mask"]
    model(**batch, position_ids=positions).loss.backward()


@pytest.mark.parametrize("keep_fraction", [0.4, 1.0])
@pytest.mark.parametrize("scope", ["carried", "per_layer"])
def test_the_caller_s_embeddings_stay_as_they_are(scope: str, keep_fraction: float) -> None:
    model = tiny_model()
    selection = {"scope": scope, "entry_layer": 0, "block_tokens": 8}
    apply_jenga(model, JengaConfig.preset("jenga", keep_fraction=keep_fraction, selection=selection))
    embeddings = torch.randn(1, 77, 32)
    before = embeddings.clone()
    model(inputs_embeds=embeddings, labels=tiny_batch(batch=1)["labels"]).loss.backward()
    assert torch.equal(embeddings, before)


def test_dense_training_needs_no_exact_pass_and_takes_any_attention() -> None:
    model = tiny_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    apply_jenga(model, JengaConfig.preset("lora")).undo()
    with pytest.raises(ConfigError, match="was loaded with 'flash_attention_2'; load it with"):
        apply_jenga(model, JengaConfig.preset("jenga"))


def test_recomputing_the_mlp_under_autocast_is_refused() -> None:
    model, batch = tiny_model().requires_grad_(False), tiny_batch(batch=1)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    apply_jenga(model, JengaConfig.preset("jenga", recompute="mlp"))
    model(**batch).loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ConfigError, match="leaves autocast to"):
        model(**batch)


def test_an_adapter_that_was_trained_is_seen_by_parts_that_are_called_alone() -> None:
    model = with_adapter(tiny_model())
    ids = tiny_batch(batch=1)["input_ids"]
    handle = apply_jenga(model, JengaConfig.preset("lora"))
    model(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.5)
        trained = handle.parts.decoder(ids).last_hidden_state
        evaluated = handle.parts.decoder.eval()(ids).last_hidden_state
    torch.testing.assert_close(trained, evaluated, rtol=1e-4, atol=1e-4)


def test_loss_on_the_involved_is_computed_for_their_rows_alone() -> None:
    model, batch = tiny_model(), tiny_batch(batch=2, tokens=80, padded=False)
    for scope in ("carried", "per_layer"):
        handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"scope": scope, "block_tokens": 8}))
        hidden, involvement = handle.run(batch, handle.config.selection)
        assert hidden.shape[:2] == involvement.loss_targets().shape == (2, 32)
        handle.undo()


class _NeverAsks(TorchDispatchMode):
    """Refuses what would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise AssertionError(f"{func} waits for the GPU")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep_fraction", [0.4, 1.0])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"recompute": "full"},
        {"recompute": "mlp"},
        {"selection": {"below_entry": "involved"}},
        {"selection": {"unselected": "forward_only"}},
        {"selection": {"scope": "per_layer"}},
        {"selection": {"loss_on": "all"}},
        {"preset": "lora"},
    ],
    ids=str,
)
def test_full_windows_never_ask_the_gpu(fields: dict[str, Any], keep_fraction: float) -> None:
    """What a step that is captured as a CUDA graph must not do."""
    model, batch = with_adapter(tiny_model()), tiny_batch(batch=1, padded=False)
    del batch["attention_mask"]
    values = {**fields, "selection": {"block_tokens": 8, **fields.get("selection", {})}}
    handle = apply_jenga(model, JengaConfig.parse({**values, "keep_fraction": keep_fraction}))
    with handle.full_windows(), _NeverAsks():
        model(**batch).loss.backward()

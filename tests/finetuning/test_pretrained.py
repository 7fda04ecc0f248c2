"""Loading a model, and stretching its positions for a longer context."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from jenga_core import JengaConfig
from jenga_core.errors import ConfigError
from jenga_core.finetuning.pretrained import load_model, load_tokenizer, stretch_positions
from tests.support.tiny import save_tiny_model

CPU = torch.device("cpu")


def test_a_model_is_loaded_frozen_in_float32_on_a_cpu(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    model = load_model(folder, JengaConfig.preset("jenga", context_length_tokens=256), CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert load_tokenizer(folder)("ab").input_ids


def test_a_context_past_the_model_s_own_needs_a_rope_setting(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"is 512, but the model takes 256; set jenga.rope") as raised:
        load_model(folder, JengaConfig.preset("jenga", context_length_tokens=512), CPU)
    assert raised.value.param == "jenga.context_length_tokens"
    config = JengaConfig.preset("jenga", context_length_tokens=600, rope={"type": "yarn", "factor": 2})
    with pytest.raises(ConfigError, match="stretches the model's 256 only to 512"):
        load_model(folder, config, CPU)


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
def test_rope_settings_train_at_the_longer_context(tmp_path: Path, model_type: str, rope_type: str) -> None:
    folder = save_tiny_model(tmp_path / "model", model_type=model_type)
    config = JengaConfig.preset("jenga", context_length_tokens=512, rope={"type": rope_type, "factor": 2})
    model = load_model(folder, config, CPU)
    ids = torch.arange(512)[None] % 200
    with torch.no_grad():
        stretched = model(input_ids=ids).logits
        plain = load_model(folder, JengaConfig.preset("jenga", context_length_tokens=256), CPU)(input_ids=ids).logits
    assert stretched.isfinite().all()
    assert not torch.allclose(stretched, plain)


def test_sliding_layers_keep_their_own_angles(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", model_type="gemma3_text")
    config = JengaConfig.preset("jenga", context_length_tokens=512, rope={"type": "linear", "factor": 2})
    stretched, plain = load_model(folder, config, CPU), load_model(folder, JengaConfig(context_length_tokens=256), CPU)
    x, positions = torch.zeros(1, 512, 32), torch.arange(512)[None]
    angles = [
        [model.get_decoder().rotary_emb(x, positions, kind)[0] for kind in ("sliding_attention", "full_attention")]
        for model in (stretched, plain)
    ]
    assert torch.equal(angles[0][0], angles[1][0])
    torch.testing.assert_close(angles[0][1][:, ::2], angles[1][1][:, :256])  # half as fast


@pytest.mark.parametrize("model_type", ["opt", "phi3"])
def test_positions_that_cannot_be_stretched(tmp_path: Path, model_type: str) -> None:
    folder = save_tiny_model(tmp_path / "model", model_type=model_type)
    with pytest.raises(ConfigError, match="but the model takes 256; ask for at most 256"):
        load_model(folder, JengaConfig(context_length_tokens=512), CPU)
    config = JengaConfig.preset("jenga", context_length_tokens=512, rope={"type": "linear", "factor": 2})
    with pytest.raises(ConfigError, match=r"nothing can: leave jenga\.rope out"):
        load_model(folder, config, CPU)
    ids = torch.arange(256)[None]
    assert load_model(folder, JengaConfig(context_length_tokens=256), CPU)(input_ids=ids).logits.isfinite().all()


def test_positions_that_are_stretched_already(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", rope_parameters={"rope_type": "linear", "factor": 4.0})
    config = JengaConfig.preset("jenga", rope={"type": "yarn", "factor": 8})
    with pytest.raises(ConfigError, match="stretched already, by 'linear' to 256"):
        load_model(folder, config, CPU)


def test_attention_scores_are_soft_capped_where_the_model_says_so(tmp_path: Path) -> None:
    config = JengaConfig(context_length_tokens=256)
    implementations = {
        model_type: load_model(
            save_tiny_model(tmp_path / model_type, model_type=model_type), config, CPU
        ).config._attn_implementation
        for model_type in ("llama", "gemma2", "gemma3_text")
    }
    assert implementations == {"llama": "sdpa", "gemma2": "eager", "gemma3_text": "sdpa"}


def test_stretched_length(tmp_path: Path) -> None:
    model_config = AutoConfig.from_pretrained(save_tiny_model(tmp_path / "model"))
    stretch_positions(model_config, JengaConfig.preset("jenga", rope={"type": "linear", "factor": 8}))
    assert model_config.max_position_embeddings == 2048

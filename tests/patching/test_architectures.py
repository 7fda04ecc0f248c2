"""The table: every row is tried, and what it says holds for the models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from jenga_core.config import LoraConfig, RopeConfig
from jenga_core.errors import ConfigError, UnsupportedModelError
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.patching.architectures import ARCHITECTURES, architecture_of, check_rope, check_targets
from jenga_core.service.models.inspection import inspect_folder
from tests.support.tiny import MODEL_TYPES, save_tiny_model, tiny_model


def test_the_tiny_models_are_those_of_the_table() -> None:
    assert {tiny_model(name).config.model_type for name in MODEL_TYPES} == set(ARCHITECTURES)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_adapter_is_put_on_all_linear_layers_of_attention_and_on_no_other(model_type: str) -> None:
    model = tiny_model(model_type)
    attention = {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".self_attn." in name
    }
    adapted = add_adapter(model, LoraConfig()).get_base_model()
    assert {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")} == attention


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_service_reads_what_transformers_wrote(tmp_path: Path, model_type: str) -> None:
    seen = inspect_folder(save_tiny_model(tmp_path, model_type=model_type))
    assert seen["model_type"] == tiny_model(model_type).config.model_type
    assert (seen["num_hidden_layers"], seen["context_length_tokens"]) == (4, 256)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_linear_layers_are_those_of_the_model(model_type: str) -> None:
    model = tiny_model(model_type)
    layer = model.get_decoder().layers[0]
    found = {name.rpartition(".")[2] for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert found == set(architecture_of(model.config.model_type).linears)
    check_targets(model.config.model_type, sorted(found))
    with pytest.raises(ConfigError, match=r"\['c_attn'\] are no linear layers") as refused:
        check_targets(model.config.model_type, ["c_attn"])
    assert refused.value.param == "jenga.lora.target_modules"


def test_rope_types() -> None:
    check_rope("opt", None)
    check_rope("gemma3_text", RopeConfig(type="yarn"))
    for model_type in ("opt", "phi3"):
        with pytest.raises(ConfigError, match=f"'linear' cannot stretch .* '{model_type}'; nothing can") as raised:
            check_rope(model_type, RopeConfig())
        assert raised.value.param == "jenga.rope"


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"'t5' is not supported; supported are llama, .*gemma3_text, .*opt$"
    ):
        architecture_of("t5")


def test_the_table_is_read_without_torch() -> None:
    program = "import sys, jenga_core.patching.architectures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

"""LoRA adapters, made, counted and saved by peft."""

from __future__ import annotations

import tarfile
from pathlib import Path

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from jenga_core.config import LoraConfig
from jenga_core.patching.architectures import architecture_of, check_targets


def add_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put a fresh adapter on a frozen model.

    Raises:
        ConfigError: the architecture has no linear layer of a target's name.
        UnsupportedModelError: the model's architecture is unknown.

    The adapter starts as the identity; torch's global generator draws its first matrix.
    """
    check_targets(model.config.model_type, config.target_modules)
    targets = config.target_modules or architecture_of(model.config.model_type).adapter_targets
    peft_config = PeftLoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, peft_config)


def save_adapter(model: PeftModel, folder: Path, *, base_model_name: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, which plain peft loads on the base model."""
    config = model.peft_config["default"]
    folder_name, config.base_model_name_or_path = config.base_model_name_or_path, base_model_name
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    config.base_model_name_or_path = folder_name
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def pack_adapter(folder: Path, archive: Path) -> None:
    """The adapter folder as a .tar.gz whose files lie at its top."""
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, arcname=file.name)

"""The ways to fine-tune that are compared for speed and memory.

Those named `lora...` are what a user has today: a PEFT adapter on a transformers model, with checkpointing as
transformers switches it on, and Liger's kernels as its documentation does (rotary angles, norms, gated activation,
fused linear cross entropy). No code of ours is loaded in their process. Those named `jenga...` are `apply_jenga` on the
same adapter.

`jenga-per-layer` stands for the paper's preset: a new set in every layer from the default entry layer on, loss on all
tokens, by keep_fraction where the paper has thresholds, which random weights have no use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from benchmarks.shapes import Shape

LORA_RANK = 8

RECOMPUTE = ("none", "mlp", "full", "offload")
"""What backward computes again instead of keeping it, as JengaConfig's field of that name; `offload` is `full`, and
what it keeps waits in the host's memory."""


class Unsupported(Exception):
    """The policy does not exist for this model."""


@dataclass(frozen=True)
class Policy:
    """How a model is prepared."""

    fields: Mapping[str, Any] | None = None
    """Of JengaConfig; None where our code has no part."""

    uses_liger: bool = False
    uses_checkpointing: bool = False
    """transformers' own, of whole layers."""

    @property
    def is_ours(self) -> bool:
        """Whether apply_jenga is called."""
        return self.fields is not None

    @property
    def is_sparse(self) -> bool:
        """Whether a keep fraction means anything."""
        return self.is_ours and self.fields != {"preset": "lora"}

    def recomputes(self) -> tuple[str, ...]:
        """The values of `recompute` that it is measured with at every length."""
        if self.is_ours:
            return RECOMPUTE[:3]
        return ("full",) if self.uses_checkpointing else ("none",)


POLICIES: Mapping[str, Policy] = {
    "lora": Policy(),
    "lora+checkpoint": Policy(uses_checkpointing=True),
    "lora+liger": Policy(uses_liger=True),
    "lora+liger+checkpoint": Policy(uses_liger=True, uses_checkpointing=True),
    "jenga-lora": Policy({"preset": "lora"}),
    "jenga": Policy({"preset": "jenga"}),
    "jenga-predicted": Policy(
        {"preset": "jenga", "selection": {"score": "predicted"}, "predictor": {"steps": 1, "tokens": 2048}}
    ),
    "jenga-carried": Policy({"preset": "jenga", "selection": {"below_entry": "involved"}}),
    "jenga-per-layer": Policy(
        {
            "preset": "jenga",
            "selection": {
                "scope": "per_layer",
                "column": "sum",
                "asked_by": "all",
                "target_fraction": 0.0,
                "loss_on": "all",
            },
        }
    ),
}
"""`jenga` is the default preset (deferred selection) with exact scores, `jenga-lora` the dense one. The predictors of
`jenga-predicted` are as a job's are when it begins to train them, before elastic size takes anything out: on random
weights there is nothing to learn, and a step takes at most as long with them later."""


@dataclass(frozen=True)
class Prepared:
    """A model ready to be trained."""

    model: nn.Module
    handle: Any
    """JengaHandle, or None."""

    config: Mapping[str, Any] | None
    """JengaConfig as the results file keeps it, or None."""


def prepare(
    policy: Policy, base: PreTrainedModel, shape: Shape, *, tokens: int, keep_fraction: float, recompute: str
) -> Prepared:
    """Adapt and patch `base`. Raises Unsupported."""
    if policy.uses_liger:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        if shape.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            raise Unsupported(f"Liger has no kernels for {shape.model_type}")
        MODEL_TYPE_TO_APPLY_LIGER_FN[shape.model_type](model=base)
    adapter = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        lora_dropout=0.0,
        target_modules=list(shape.adapter_targets),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, adapter)
    if policy.uses_checkpointing:
        base.gradient_checkpointing_enable()
    if policy.fields is None:
        return Prepared(model.train(), None, None)

    from jenga_core.config import JengaConfig
    from jenga_core.errors import ConfigError
    from jenga_core.patching.apply import apply_jenga

    fields: dict[str, Any] = {**policy.fields, "context_length_tokens": tokens, "recompute": recompute}
    if recompute == "offload":
        fields |= {"recompute": "full", "offload": True}
    if policy.is_sparse:
        fields["keep_fraction"] = keep_fraction
    config = JengaConfig.parse(fields)
    try:
        predicts = config.selection.score == "predicted"
        handle = _predicting(model, config, shape) if predicts else apply_jenga(model, config)
    except ConfigError as error:
        raise Unsupported(str(error)) from error
    return Prepared(model.train(), handle, config.model_dump(mode="json"))


def _predicting(model: nn.Module, config: Any, shape: Shape) -> Any:
    """With predictors of the full size; what they were trained on is of no account."""
    from benchmarks.policies import with_predictors
    from jenga_core.finetuning.data import PadRight

    ids = torch.randint(shape.vocabulary, (4, 512), generator=torch.Generator().manual_seed(0)).tolist()
    handle, _ = with_predictors(model, config, [{"input_ids": each, "labels": each} for each in ids], PadRight(0), 0)
    return handle

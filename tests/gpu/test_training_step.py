"""A whole training step on a CUDA device, by kernels and cuDNN, against the same step in float64 on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from jenga_core import JengaConfig, apply_jenga
from tests.support.tiny import tiny_batch, tiny_model

pytestmark = pytest.mark.gpu

POLICIES: dict[str, dict[str, Any]] = {
    "deferred": {},
    "deferred, mlp recomputed": {"recompute": "mlp"},
    "deferred, recomputed": {"recompute": "full"},
    "carried": {"selection": {"below_entry": "involved"}, "recompute": "full"},
    "gradient only": {"selection": {"unselected": "forward_only"}},
    "per layer": {"selection": {"scope": "per_layer"}, "recompute": "full"},
    "lora": {"preset": "lora"},
    "lora, recomputed": {"preset": "lora", "recompute": "full"},
    "groups": {"preset": "longlora", "attention_group_tokens": 48, "attention_sink_tokens": 16},
    "groups among the involved": {"attention_group_tokens": 32, "attention_sink_tokens": 16},
}


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def adapted(model_type: str) -> nn.Module:
    model = tiny_model(model_type, hidden_size=128, intermediate_size=192, head_dim=64, num_attention_heads=2)
    torch.manual_seed(0)
    targets = ["qkv_proj"] if model_type == "phi3" else ["q_proj", "k_proj", "v_proj"]
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def step(model: nn.Module, batch: dict[str, Tensor], fields: dict[str, Any]) -> tuple[float, dict[str, Tensor], Any]:
    selection = {"block_tokens": 16, "score": "recent", **fields.get("selection", {})}  # the same set in every dtype
    handle = apply_jenga(model, JengaConfig.preset(**{"name": "jenga", **_named(fields), "selection": selection}))
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    report = handle.report()
    handle.undo()
    return float(loss.detach()), gradients, [span.blocks for span in report.spans]


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    return {("name" if key == "preset" else key): value for key, value in fields.items() if key != "selection"}


def stored_in(dtype: torch.dtype, model_type: str) -> nn.Module:
    """On the device, all but the adapter in this dtype."""
    model = adapted(model_type).cuda()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma3_text", "phi3"])
def test_step_equals_the_cpu_in_float64(model_type: str, policy: str, padded: bool) -> None:
    """A gradient's direction may be off by half as much again as that of plain modules in the same dtype, and a little
    more."""
    fields = POLICIES[policy]
    batch = tiny_batch(batch=3 if padded else 1, tokens=200, padded=padded)
    if not padded:
        del batch["attention_mask"]
    loss, gradients, blocks = step(adapted(model_type).double(), batch, fields)
    on_device = {name: tensor.cuda() for name, tensor in batch.items()}
    for dtype, margin in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        plain_fields = {**fields, "fused": False, "recompute": "none"}
        _, plain, _ = step(stored_in(dtype, model_type), on_device, plain_fields)
        our_loss, ours, our_blocks = step(stored_in(dtype, model_type), on_device, fields)
        assert our_blocks == blocks
        assert our_loss == pytest.approx(loss, rel=3e-2 if dtype == torch.bfloat16 else 1e-4)
        assert ours.keys() == gradients.keys()
        for name, truth in gradients.items():
            off, allowed = (1 - float(nn.functional.cosine_similarity(found[name].flatten(), truth.flatten(), dim=0))
                            for found in (ours, plain))  # fmt: skip
            assert off < 1.5 * allowed + margin, f"{name} in {dtype}: off by {off}, plain modules by {allowed}"
            ratio = ours[name].norm() / truth.norm()
            assert float(ratio) == pytest.approx(1, abs=0.15 if dtype == torch.bfloat16 else 1e-3), f"{name} in {dtype}"

"""Lean modules inside whole models on a CUDA device, with the kernels compiled: as near to the truth as the models' own
modules, and nearer in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from jenga_core.patching.architectures import architecture_of
from jenga_core.patching.fused import fuse
from jenga_core.patching.parts import parts_of
from tests.support.assertions import assert_within_budget
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tolerances import MARGIN

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def adapted(model_type: str, dtype: torch.dtype) -> nn.Module:
    model = tiny_model(model_type, hidden_size=64, head_dim=16, intermediate_size=176).to("cuda", dtype)
    torch.manual_seed(3)
    targets = list(architecture_of(model_type.split("-")[0]).adapter_targets)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide the gradients of lora_A
            nn.init.normal_(parameter, std=0.1)
    return model


def step(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("recompute_mlp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_loss_and_gradients(model_type: str, dtype: torch.dtype, recompute_mlp: bool) -> None:
    model = adapted(model_type, dtype)
    batch = {name: tensor.cuda() for name, tensor in tiny_batch(batch=2, tokens=131).items()}
    truth = step(copy.deepcopy(model).double(), batch)
    plain = step(model, batch)
    fuse(parts_of(model), recompute_mlp=recompute_mlp).active = True
    ours = step(model, batch)
    assert ours.keys() == truth.keys()
    assert all(ours[name].dtype == plain[name].dtype for name in truth)
    # By the norm over all of them: the largest single error of many is a matter of luck.
    error, allowed = distance(ours, truth), 1.2 * distance(plain, truth) + MARGIN["fused", dtype]
    assert error <= allowed
    assert_within_budget("fused", ours=ours["loss"].to(dtype), plain=plain["loss"].to(dtype), truth=truth["loss"])


def distance(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients, relative to theirs."""
    names = [name for name in truth if name != "loss"]
    off = sum(float((found[name].double() - truth[name]).square().sum()) for name in names)
    return (off / sum(float(truth[name].square().sum()) for name in names)) ** 0.5


def test_less_memory_at_a_real_width() -> None:
    """A layer of Llama-3-8B's width: what is alive between forward and backward."""
    model = tiny_model(
        "llama", layers=2, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, max_position_embeddings=4096,
    ).to("cuda", torch.bfloat16)  # fmt: skip
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    decoder, tokens = parts_of(model).decoder, 4096
    ids = torch.randint(3, 256, (1, tokens), device="cuda")

    def kept_bytes_per_token_and_layer() -> float:
        before = torch.cuda.memory_allocated()
        output = decoder(input_ids=ids, use_cache=False).last_hidden_state
        kept = torch.cuda.memory_allocated() - before - output.nbytes
        del output
        return kept / tokens / 2

    plain = kept_bytes_per_token_and_layer()
    lean = fuse(parts_of(model))
    lean.active = True
    ours = kept_bytes_per_token_and_layer()
    assert ours < 100 * 1024  # x, q, k, v, attention's output, x after it, gate, up: 92 KB
    assert plain > 1.6 * ours
    lean.recompute_mlp = True
    assert kept_bytes_per_token_and_layer() < 44 * 1024

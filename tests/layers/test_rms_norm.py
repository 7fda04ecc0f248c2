"""rms_norm against the norms of transformers: value, gradient, and what is stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from jenga_core.layers.rms_norm import origin_of, rms_norm
from tests.support.assertions import assert_bit_identical, assert_within_budget

EPSILON = 1e-5
OFFSET = {LlamaRMSNorm: 0.0, Gemma2RMSNorm: 1.0}


def module(kind: type[nn.Module], width: int, dtype: torch.dtype) -> nn.Module:
    norm = kind(width, eps=EPSILON)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(width, generator=torch.Generator().manual_seed(1)))
    return norm.requires_grad_(False).to(dtype)


def value_and_gradient(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    (dx,) = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).to(y.dtype).view_as(y))
    return y.detach(), dx


@pytest.mark.parametrize("kind", OFFSET)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient(dtype: torch.dtype, kind: type[nn.Module]) -> None:
    norm = module(kind, 24, dtype)
    x = (5 * torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    ours = value_and_gradient(rms_norm(x, norm.weight, epsilon=EPSILON, offset=OFFSET[kind]), x)
    theirs = value_and_gradient(norm(x), x)
    precise, weight = x.detach().double().requires_grad_(), norm.weight.double() + OFFSET[kind]
    truth = value_and_gradient(torch.nn.functional.rms_norm(precise, (24,), weight, EPSILON), precise)
    for our, plain, true in zip(ours, theirs, truth, strict=True):
        assert_within_budget("rms_norm", ours=our, plain=plain, truth=true)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradcheck_in_float64(offset: float) -> None:
    weight = module(LlamaRMSNorm, 5, torch.float64).weight
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: rms_norm(t, weight, epsilon=EPSILON, offset=offset), (x,))


def test_what_is_stored() -> None:
    weight = module(LlamaRMSNorm, 16, torch.bfloat16).weight
    x = torch.randn(10, 16, dtype=torch.bfloat16, requires_grad=True)
    stored: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        stored.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        rms_norm(x, weight, epsilon=EPSILON)
    assert sorted(stored) == [16 * 2, 10 * 4, 10 * 16 * 2]  # the weight, a number per row, x


def test_strided_and_empty_input() -> None:
    weight = module(LlamaRMSNorm, 6, torch.float64).weight
    x = torch.randn(6, 4, 3, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    straight = x.detach().contiguous().requires_grad_()
    ours = value_and_gradient(rms_norm(x, weight, epsilon=EPSILON), x)
    theirs = value_and_gradient(rms_norm(straight, weight, epsilon=EPSILON), straight)
    for our, their in zip(ours, theirs, strict=True):
        assert_bit_identical("rms_norm", our, their)
    empty = torch.empty(0, 6, dtype=torch.float64, requires_grad=True)
    rms_norm(empty, weight, epsilon=EPSILON).sum().backward()
    assert empty.grad is not None and empty.grad.shape == (0, 6)


def test_bad_input() -> None:
    norm = module(LlamaRMSNorm, 6, torch.float32)
    with pytest.raises(ValueError, match=r"x is 5 wide, the weight has shape \(6,\)"):
        rms_norm(torch.ones(2, 5), norm.weight, epsilon=EPSILON)
    with pytest.raises(ValueError, match="must be frozen"):
        rms_norm(torch.ones(2, 6), norm.weight.requires_grad_(), epsilon=EPSILON)


def test_the_output_remembers_its_origin_until_it_is_changed() -> None:
    weight = module(LlamaRMSNorm, 6, torch.float32).weight
    x = torch.randn(3, 6, requires_grad=True)
    y = rms_norm(x, weight, epsilon=EPSILON, offset=1.0)
    origin = origin_of(y)
    assert origin is not None and origin.x is x
    assert_bit_identical("rms_norm", origin.norm.of(origin.x), y.detach())
    assert origin_of(y * 1) is None
    assert origin_of(rms_norm(x.detach(), weight, epsilon=EPSILON)) is None
    with torch.no_grad():
        y.mul_(2)
    assert origin_of(y) is None

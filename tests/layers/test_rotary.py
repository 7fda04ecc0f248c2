"""rotary against transformers' own: value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from jenga_core.layers.rotary import rotary
from tests.support.assertions import assert_within_budget

B, H, K, T, D = 2, 3, 1, 5, 8


def inputs(dtype: torch.dtype, angle_batch: int = B) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(B, T, H, D, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)
    k = torch.randn(B, T, K, D, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)
    angles = 7 * torch.randn(angle_batch, T, D, generator=generator, dtype=torch.float64)  # no two alike
    return q.requires_grad_(), k.requires_grad_(), angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("angle_batch", [1, B])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradients(dtype: torch.dtype, angle_batch: int) -> None:
    results = []
    for function, precise in ((rotary, False), (apply_rotary_pos_emb, False), (apply_rotary_pos_emb, True)):
        q, k, cos, sin = inputs(dtype, angle_batch)
        if precise:
            q, k, cos, sin = q.detach().double(), k.detach().double(), cos.double(), sin.double()
            q, k = q.requires_grad_(), k.requires_grad_()
        turned_q, turned_k = function(q, k, cos, sin)
        weights = torch.linspace(-1, 1, turned_q.numel()).to(q.dtype).view_as(turned_q)
        loss = (turned_q * weights).sum() + (turned_k * weights[:, :K]).sum()
        results.append((turned_q.detach(), turned_k.detach(), *torch.autograd.grad(loss, (q, k))))
    for ours, plain, truth in zip(*results, strict=True):
        assert ours.dtype == plain.dtype
        assert_within_budget("rotary", ours=ours, plain=plain, truth=truth)
    assert results[0][0].stride() == results[1][0].stride()  # attention sees the layout that it is used to


def test_gradcheck_in_float64() -> None:
    q, k, cos, sin = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda q, k: rotary(q, k, cos, sin), (q, k))
    assert torch.autograd.gradcheck(lambda q, k: rotary(q, k, cos, sin)[1], (q, k))


def test_nothing_but_the_angles_is_stored() -> None:
    q, k, cos, sin = inputs(torch.float32)
    stored: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        stored.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        rotary(q, k, cos, sin)
    assert sorted(stored) == sorted([cos.data_ptr(), sin.data_ptr()])


def test_angles_of_another_width() -> None:
    q, k, cos, sin = inputs(torch.float32)
    with pytest.raises(ValueError, match="angles are 4 wide and heads 8"):
        rotary(q, k, cos[..., :4], sin[..., :4])

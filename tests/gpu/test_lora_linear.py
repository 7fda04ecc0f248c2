"""lora_linear on a CUDA device, where the adapter's gradients come out of the products in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from jenga_core.layers.lora_linear import Adapter, Projection, lora_linear
from tests.support.assertions import assert_within_budget

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.mark.parametrize("shape", [(1, 512, 1024, 8), (333, 72, 200, 4), (4096, 4096, 1024, 16)], ids=str)
@pytest.mark.parametrize("adapter_dtype", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_value_and_gradients(
    dtype: torch.dtype, adapter_dtype: torch.dtype | None, shape: tuple[int, int, int, int]
) -> None:
    M, inputs, outputs, r = shape
    generator = torch.Generator().manual_seed(M)
    x = torch.randn(M, inputs, generator=generator).to("cuda", dtype)
    weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).to("cuda", dtype)
    bias = torch.randn(outputs, generator=generator).to("cuda", dtype)
    a = (torch.randn(r, inputs, generator=generator) / inputs**0.5).to("cuda", adapter_dtype or dtype)
    b = (torch.randn(outputs, r, generator=generator) / r**0.5).to("cuda", adapter_dtype or dtype)
    dy = torch.randn(M, outputs, generator=generator).to("cuda", dtype)
    results = []
    for name, precise in (("ours", False), ("plain", False), ("plain", True)):
        given = [t.double() if precise else t.clone() for t in (x, weight, bias, a, b)]
        x_, weight_, bias_, a_, b_ = given
        for trained in (x_, a_, b_):
            trained.requires_grad_()
        if name == "ours":
            y = lora_linear(x_, Projection(weight_, bias_, Adapter(a_, b_, 1.5)))
        else:
            y = (F.linear(x_, weight_, bias_) + F.linear(F.linear(x_.to(a_.dtype), a_), b_) * 1.5).to(x_.dtype)
        y.backward(dy.to(y.dtype))
        results.append((y.detach(), x_.grad, a_.grad, b_.grad))
    for ours, plain, truth in zip(*results, strict=True):
        assert ours is not None and plain is not None and truth is not None
        assert ours.dtype == plain.dtype
        assert_within_budget("lora_linear", ours=ours.to(dtype), plain=plain.to(dtype), truth=truth)

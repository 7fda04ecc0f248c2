"""gated_activation and its backward: the kernels against their twins, on fresh random inputs of odd shapes.

Compiled on a CUDA device, every dtype; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU, small sizes.
"""

from __future__ import annotations

import os

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor
from torch.nn import functional as F

from jenga_core.layers import gated_mlp as layer
from tests.support.assertions import assert_within_budget

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

SMALL = [(1, 1), (3, 17), (5, 2048), (2, 5000)]
LARGE = [(1000, 14336), (257, 11008), (33, 8191)]
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")


def inputs(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """d_h, and gate and up as halves of the same rows."""
    S, width = shape
    generator = torch.Generator().manual_seed(width)
    both = 3 * torch.randn(S, 2 * width, generator=generator)
    both[0, 0] = -60.0  # exp(60) is far above float16
    both[-1, width - 1] = 60.0
    both = both.to(DEVICE, dtype)
    return torch.randn(S, width, generator=generator).to(DEVICE, dtype), both[:, :width], both[:, width:]


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_equal_twins(shape: tuple[int, int], dtype: torch.dtype, activation: str) -> None:
    from jenga_kernels.gated_activation import gated_activation, gated_activation_backward

    d_h, gate, up = inputs(shape, dtype)
    precise = (d_h.double(), gate.double(), up.double())
    plain = (d_h.clone(), gate.clone(), up.clone())
    h = gated_activation(gate, up, activation=activation)
    assert h.is_contiguous()
    truth = reference.gated_activation(*precise[1:], activation=activation)
    expected = reference.gated_activation(*plain[1:], activation=activation)
    assert_within_budget("gated_activation", ours=h, plain=expected, truth=truth)
    over_gate = gate.clone()
    assert gated_activation(over_gate, up, activation=activation, out_SF=over_gate) is over_gate
    assert torch.equal(over_gate, h)

    gated_activation_backward(d_h, gate, up, activation=activation)
    reference.gated_activation_backward(*plain, activation=activation)
    reference.gated_activation_backward(*precise, activation=activation)
    assert torch.equal(d_h, plain[0])
    for ours, twin, true in zip((gate, up), plain[1:], precise[1:], strict=True):
        assert_within_budget("gated_activation", ours=ours, plain=twin, truth=true)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_twins_equal_autograd(activation: str) -> None:
    d_h, gate, up = (tensor.double().requires_grad_() for tensor in inputs((3, 17), torch.float32))
    act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    torch.testing.assert_close(reference.gated_activation(gate.detach(), up.detach(), activation=activation), act * up)
    expected = torch.autograd.grad(act * up, (gate, up), d_h)
    ours = (gate.detach().clone(), up.detach().clone())
    reference.gated_activation_backward(d_h.detach(), *ours, activation=activation)
    torch.testing.assert_close(ours, expected)


def test_bad_input() -> None:
    from jenga_kernels.gated_activation import gated_activation

    _, gate, up = inputs((4, 16), torch.float32)
    assert gated_activation(gate[:0], up[:0], activation="silu").shape == (0, 16)
    with pytest.raises(ValueError, match="'relu' of"):
        gated_activation(gate, up, activation="relu")
    with pytest.raises(ValueError, match="agree in shape"):
        gated_activation(gate, up[:3], activation="silu")
    with pytest.raises(ValueError, match=r"agree in shape and dtype.*float16"):
        gated_activation(gate, up.half(), activation="silu")
    with pytest.raises(ValueError, match="neighbouring entries"):
        gated_activation(gate.T, up.T, activation="silu")


@pytest.mark.skipif(INTERPRETED, reason="the MLP uses the kernels on CUDA devices only")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mlp_on_the_device(dtype: torch.dtype, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "CHUNK_ROWS", 256)
    M, E, width = 700, 192, 500
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(M, E, generator=generator).to("cuda", dtype)
    weights = [torch.randn(width, E, generator=generator).to("cuda", dtype) / E**0.5 for _ in range(2)]
    weights.append(torch.randn(E, width, generator=generator).to("cuda", dtype) / width**0.5)
    dy = torch.randn(M, E, generator=generator).to("cuda", dtype)
    results = []
    for name, precise in (("ours", False), ("plain", False), ("plain", True)):
        x_, *weights_ = (t.double() if precise else t.clone() for t in (x, *weights))
        x_.requires_grad_()
        if name == "ours":
            y = layer.gated_mlp(x_, *weights_, activation="silu", recompute=recompute)
        else:
            y = (F.silu(x_ @ weights_[0].T) * (x_ @ weights_[1].T)) @ weights_[2].T
        results.append((y.detach(), *torch.autograd.grad(y, x_, dy.to(y.dtype))))
    for ours, plain, truth in zip(*results, strict=True):
        assert_within_budget("gated_mlp", ours=ours, plain=plain, truth=truth)

"""gated_mlp against the formula in plain PyTorch: value, gradient, what is stored, and the output that is left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jenga_core.layers import gated_mlp as module
from jenga_core.layers.gated_mlp import chunks, gated_mlp, output_is_unused, output_unused
from jenga_core.layers.rms_norm import rms_norm
from tests.support.assertions import assert_bit_identical, assert_within_budget

E_, F_ = 12, 20
ACTIVATIONS = {"silu": F.silu, "gelu_tanh": lambda g: F.gelu(g, approximate="tanh")}


def inputs(dtype: torch.dtype, rows: tuple[int, ...] = (2, 5)) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw(*rows, E_).requires_grad_(), (draw(F_, E_), draw(F_, E_), draw(E_, F_) / 4)


def plain(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: str) -> Tensor:
    return (ACTIVATIONS[activation](x @ gate.T) * (x @ up.T)) @ down.T


def value_and_gradient(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    (dx,) = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).to(y.dtype).view_as(y))
    return y.detach(), dx


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient(dtype: torch.dtype, recompute: bool, activation: str) -> None:
    x, weights = inputs(dtype)
    ours = value_and_gradient(gated_mlp(x, *weights, activation=activation, recompute=recompute), x)
    expected = value_and_gradient(plain(x, *weights, activation), x)
    precise = x.detach().double().requires_grad_()
    truth = value_and_gradient(plain(precise, *(weight.double() for weight in weights), activation), precise)
    for our, plain_result, true in zip(ours, expected, truth, strict=True):
        assert_within_budget("gated_mlp", ours=our, plain=plain_result, truth=true)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_in_float64(activation: str) -> None:
    """With recompute, whose backward may run more than once."""
    x, weights = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda t: gated_mlp(t, *weights, activation=activation, recompute=True), (x,))


@pytest.mark.parametrize("rows", [0, 1, 127, 300, 700])
def test_chunks_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = inputs(torch.float64, (rows,))
    whole = value_and_gradient(gated_mlp(x, *weights, activation="silu"), x)
    monkeypatch.setattr(module, "CHUNK_ROWS", 256)
    for recompute in (False, True):
        in_chunks = value_and_gradient(gated_mlp(x, *weights, activation="silu", recompute=recompute), x)
        for ours, theirs in zip(in_chunks, whole, strict=True):
            torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(gated_mlp(x, *weights, activation="silu"), whole[0])
    parts = list(chunks(rows))
    assert sum(part.stop - part.start for part in parts) == rows
    assert all(0 < part.stop - part.start <= 256 for part in parts)


@pytest.mark.parametrize(("recompute", "kept"), [(False, 2 * 10 * F_), (True, 10 * E_)])
def test_what_is_stored(recompute: bool, kept: int) -> None:
    x, weights = inputs(torch.float32)
    stored: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        stored[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        gated_mlp(x, *weights, activation="silu", recompute=recompute)
    assert sum(stored.values()) == kept + 3 * E_ * F_


def test_of_a_normed_input_what_was_normed_is_kept() -> None:
    x, weights = inputs(torch.float64)
    norm_weight = torch.linspace(0.5, 2, E_, dtype=torch.float64)
    stored: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        stored.add(tensor.data_ptr())
        return tensor

    normed = rms_norm(x, norm_weight, epsilon=1e-6)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = gated_mlp(normed, *weights, activation="silu", recompute=True)
    assert x.data_ptr() in stored
    assert normed.data_ptr() not in stored
    expected = plain(F.rms_norm(x, (E_,), norm_weight, 1e-6), *weights, "silu")
    for ours, theirs in zip(value_and_gradient(y, x), value_and_gradient(expected, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_second_backward_is_refused_and_not_wrong() -> None:
    x, weights = inputs(torch.float32)
    y = gated_mlp(x, *weights, activation="silu").sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_an_unused_output_is_zero_and_its_gradient_is_the_same() -> None:
    x, weights = inputs(torch.float64)
    with output_unused():
        assert output_is_unused()
        y = gated_mlp(x, *weights, activation="silu")
        followed_by_a_norm = gated_mlp(x, *weights, activation="silu", ends_layer=False)
        with torch.no_grad():
            assert not gated_mlp(x, *weights, activation="silu").any()
    assert not output_is_unused()
    assert not y.any()
    assert y.shape == x.shape
    expected = value_and_gradient(plain(x, *weights, "silu"), x)
    torch.testing.assert_close(value_and_gradient(y, x)[1], expected[1])
    torch.testing.assert_close(value_and_gradient(followed_by_a_norm, x), expected)
    with pytest.raises(RuntimeError, match="stop"), output_unused():
        raise RuntimeError("stop")
    assert not output_is_unused()


def test_strided_input_equals_contiguous_input() -> None:
    _, weights = inputs(torch.float64)
    x = torch.randn(E_, 7, 2, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    strided = value_and_gradient(gated_mlp(x, *weights, activation="silu"), x)
    straight = x.detach().contiguous().requires_grad_()
    for ours, theirs in zip(
        strided, value_and_gradient(gated_mlp(straight, *weights, activation="silu"), straight), strict=True
    ):
        assert_bit_identical("gated_mlp", ours, theirs)


def test_bad_input() -> None:
    x, weights = inputs(torch.float32)
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        gated_mlp(x.double(), *weights, activation="silu")
    with pytest.raises(ValueError, match="'silu' or 'gelu_tanh', got 'relu'"):
        gated_mlp(x, *weights, activation="relu")
    weights[1].requires_grad_()
    with pytest.raises(ValueError, match="must be frozen"):
        gated_mlp(x, *weights, activation="silu")

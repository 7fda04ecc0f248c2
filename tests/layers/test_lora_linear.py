"""lora_linear against the formula in plain PyTorch: value, every gradient, and what is stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jenga_core.layers import lora_linear as module
from jenga_core.layers.lora_linear import Adapter, Casts, Projection, lora_linears
from jenga_core.layers.rms_norm import rms_norm
from tests.support.assertions import assert_within_budget

I, O, R, SCALE = 12, 20, 3, 1.5  # noqa: E741


def inputs(dtype: torch.dtype, adapter_dtype: torch.dtype, *, bias: bool = True) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": draw(2, 5, I).to(dtype).requires_grad_(),
        "weight": draw(O, I).to(dtype),
        "bias": draw(O).to(dtype) if bias else None,
        "a": draw(R, I).to(adapter_dtype).requires_grad_(),
        "b": draw(O, R).to(adapter_dtype).requires_grad_(),
    }


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return module.lora_linear(x, Projection(weight, bias, Adapter(a, b, scale)))


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """As peft computes it: the input cast to the adapter's dtype."""
    return (F.linear(x, weight, bias) + F.linear(F.linear(x.to(a.dtype), a), b) * SCALE).to(x.dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_value_and_gradients(dtype: torch.dtype, adapter_dtype: torch.dtype, bias: bool) -> None:
    results = []
    for function, precise in (("ours", False), ("plain", False), ("plain", True)):
        given = inputs(dtype, adapter_dtype, bias=bias)
        if precise:
            given = {
                name: None if t is None else t.detach().double().requires_grad_(t.requires_grad)
                for name, t in given.items()
            }
        y = lora_linear(*given.values(), SCALE) if function == "ours" else plain(**given)
        y.backward(torch.linspace(-1, 1, y.numel()).to(y.dtype).view_as(y))
        results.append([y.detach(), *(t.grad for t in given.values() if t is not None and t.requires_grad)])
    for ours, plain_result, truth in zip(*results, strict=True):
        assert ours.dtype == plain_result.dtype
        name = "lora_linear"
        assert_within_budget(name, ours=ours.to(dtype), plain=plain_result.to(dtype), truth=truth)


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_in_float64(bias: bool) -> None:
    given = inputs(torch.float64, torch.float64, bias=bias)
    trained = (given["x"], given["a"], given["b"])
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_linear(x, given["weight"], given["bias"], a, b, SCALE), trained
    )


@pytest.mark.parametrize("frozen", ["x", "a", "b"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    given = inputs(torch.float64, torch.float64)
    given[frozen] = given[frozen].detach()
    lora_linear(*given.values(), SCALE).sum().backward()
    for name in ("x", "a", "b"):
        assert (given[name].grad is None) == (name == frozen)


def test_the_input_is_stored_once_for_q_k_and_v() -> None:
    given = inputs(torch.bfloat16, torch.float32)
    x = given["x"] * 1
    parameters = {given[name].data_ptr() for name in ("weight", "a", "b")}
    stored: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            stored[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    projection = Projection(given["weight"], None, Adapter(given["a"], given["b"], SCALE))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = [module.lora_linear(x, projection) for _ in "q"], lora_linears(x, [projection, projection])
    assert len(outputs) == 2
    assert sum(stored.values()) == 10 * I * 2 + 3 * 10 * R * 2  # x, and three times x A^T, in bfloat16


def test_of_a_normed_input_what_was_normed_is_kept() -> None:
    x, weight, bias, a, b = inputs(torch.float64, torch.float64).values()
    norm_weight = torch.linspace(0.5, 2, I, dtype=torch.float64)
    stored: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        stored.add(tensor.data_ptr())
        return tensor

    normed = rms_norm(x, norm_weight, epsilon=1e-6)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = lora_linear(normed, weight, bias, a, b, SCALE)
    assert x.data_ptr() in stored
    assert normed.data_ptr() not in stored
    expected = plain(F.rms_norm(x, (I,), norm_weight, 1e-6), weight, bias, a, b)
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), (x, a, b)),
        torch.autograd.grad(expected.square().sum(), (x, a, b)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_layers_that_share_an_input() -> None:
    """Two with an adapter, one without, one whose output is not used."""
    given = inputs(torch.float64, torch.float64)
    x, weight, bias, a, b = given.values()
    others = [torch.randn(t.shape, dtype=torch.float64, requires_grad=True) for t in (a, b)]
    trained = (x, a, b, *others)

    def ours(x: Tensor, a: Tensor, b: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
        adapters = (Adapter(a, b, SCALE), Adapter(a2, b2, -0.5), None, Adapter(a, b, 1.0))
        return lora_linears(x, [Projection(weight, bias, adapter) for adapter in adapters])[:3]

    expected = (plain(x, weight, bias, a, b), F.linear(x, weight, bias) - 0.5 * (x @ others[0].T @ others[1].T))
    for our, their in zip(ours(*trained), (*expected, F.linear(x, weight, bias)), strict=True):
        torch.testing.assert_close(our, their)
    assert torch.autograd.gradcheck(ours, trained)


def test_without_an_adapter_nothing_is_stored() -> None:
    given = inputs(torch.float32, torch.float32)
    stored: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        stored.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module.lora_linear(given["x"], Projection(given["weight"], given["bias"], None))
        F.linear(given["x"], given["weight"], given["bias"])
    assert set(stored) == {given["weight"].data_ptr()}


def test_strided_and_empty_input() -> None:
    given = inputs(torch.float64, torch.float64)
    x = torch.randn(I, 7, 2, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    arguments = [given[name] for name in ("weight", "bias", "a", "b")]
    torch.testing.assert_close(lora_linear(x, *arguments, SCALE), plain(x, *arguments))
    empty = torch.empty(0, I, dtype=torch.float64, requires_grad=True)
    y = lora_linear(empty, *arguments, SCALE)
    y.sum().backward()
    assert y.shape == (0, O)
    assert given["a"].grad is not None and not given["a"].grad.any()


def test_bad_input() -> None:
    given = inputs(torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match=r"x is torch\.float32 and the weight torch\.bfloat16"):
        lora_linear(given["x"].float(), *list(given.values())[1:], SCALE)
    given["weight"].requires_grad_()
    with pytest.raises(ValueError, match="must be frozen"):
        lora_linear(*given.values(), SCALE)


def test_an_adapter_is_cast_once_a_step() -> None:
    given = inputs(torch.bfloat16, torch.float32)
    b = given["b"]
    assert b is not None

    def output() -> Tensor:
        projection = Projection(given["weight"], given["bias"], Adapter(given["a"], b, SCALE))
        return module.lora_linear(given["x"], projection, casts).detach()

    casts = Casts()
    first = output()
    cast = casts.of([b], torch.bfloat16)
    output()
    assert casts.of([b], torch.bfloat16) is cast
    with torch.no_grad():
        b.mul_(2)  # as an optimizer does
    assert not torch.equal(output(), first)
    b.data.div_(2)  # autograd does not see it
    assert not torch.equal(output(), first)
    casts.begin_step()
    torch.testing.assert_close(output(), first)

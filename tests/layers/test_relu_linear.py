"""relu_linear against its two parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from jenga_core.layers.relu_linear import is_relu, relu_linear


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 3), (4, 3), (0, 3)])
def test_it_is_linear_and_relu(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 7, bias=has_bias, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    a = relu_linear(x, linear.weight, linear.bias)
    truth = linear(x).relu()
    torch.testing.assert_close(a, truth)
    weight = torch.randn_like(truth)
    ours, true = (torch.autograd.grad((each * weight).sum(), x)[0] for each in (a, truth))
    torch.testing.assert_close(ours, true)


def test_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: relu_linear(x, weight, bias), x)


def test_what_it_made_is_known_until_it_is_changed() -> None:
    x, weight, bias = torch.randn(2, 3), torch.randn(4, 3), torch.randn(4)
    a = relu_linear(x, weight, bias)
    assert is_relu(a)
    assert not is_relu(a.clone())
    a.sub_(1)
    assert not is_relu(a)


def test_what_it_cannot_do_is_refused() -> None:
    x, weight, bias = torch.randn(2, 3), torch.randn(4, 3), torch.randn(4)
    with pytest.raises(ValueError, match="must be frozen"):
        relu_linear(x, weight.clone().requires_grad_(), bias)
    with pytest.raises(ValueError, match=r"x is torch\.float32 and a weight torch\.float64"):
        relu_linear(x, weight.double(), bias)

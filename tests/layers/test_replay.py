"""replay against the layer itself: a layer whose output is known gives the gradients of one that computes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from jenga_core.layers.attention import Attended, AttentionCall, attend, attention_of_rows
from jenga_core.layers.replay import Layer, replay
from jenga_core.layers.sight import Sight
from jenga_core.memory.offload import HostMemory

B, H, K, T, D = 2, 4, 2, 7, 6


class TinyLayer(nn.Module):
    """Attention and residual, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(H * D, (H + 2 * K) * D, dtype=torch.float64)
        self.out = nn.Linear(H * D, H * D, dtype=torch.float64)
        self.never_used = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.runs = 0

    def call(self, x_BTE: Tensor) -> AttentionCall:
        q, k, v = self.qkv(x_BTE).unflatten(-1, (-1, D)).transpose(1, 2).split([H, K, K], dim=1)
        return AttentionCall(q, k, v, 0.5, None, None)

    def forward(self, x_BTE: Tensor, attended: Attended) -> Tensor:
        self.runs += 1
        o_BHTD = attention_of_rows(self.call(x_BTE), attended)
        return x_BTE + self.out(o_BHTD.transpose(1, 2).flatten(2)).tanh()


def causal() -> Sight:
    last = torch.arange(T).expand(B, T)
    return Sight(torch.zeros_like(last), last, is_causal=True)


def kept(layer: TinyLayer, x: Tensor, what: str = "all") -> Attended:
    """What a pass leaves of the layer's attention: "all", the "keys" and values, or "nothing" but who sees whom."""
    with torch.no_grad():
        call = layer.call(x)
    if what == "nothing":
        return Attended(causal())
    return Attended(causal(), call.k_BKGD, call.v_BKGD, *(() if what == "keys" else attend(call, causal())))


def replayed(
    layer: Callable[[Tensor, Attended], Tensor],
    x: Tensor,
    y: Tensor,
    attended: Attended,
    parameters: list[nn.Parameter],
    host: HostMemory | None = None,
) -> Tensor:
    """From the rows that enter and what is left of their attention."""

    def again(x: Tensor, *kept: Tensor | None) -> tuple[Tensor, Layer]:
        return x, lambda x: layer(x, Attended(attended.sight, *kept))

    return replay(again, x, y, [x, *attended.tensors], parameters, host)


def plain(layer: TinyLayer, x: Tensor) -> Tensor:
    call = layer.call(x)
    o = nn.functional.scaled_dot_product_attention(
        call.q_BHGD, call.k_BKGD, call.v_BKGD, is_causal=True, scale=0.5, enable_gqa=True
    )
    return x + layer.out(o.transpose(1, 2).flatten(2)).tanh()


@pytest.mark.parametrize("what", ["all", "keys", "nothing"])
@pytest.mark.parametrize("x_has_gradient", [True, False])
def test_gradients_are_those_of_the_layer(x_has_gradient: bool, what: str) -> None:
    layer = TinyLayer()
    x = torch.randn(B, T, H * D, dtype=torch.float64, requires_grad=x_has_gradient)
    weight = torch.randn(B, T, H * D, dtype=torch.float64)
    parameters = [p for name, p in layer.named_parameters() if name != "out.bias"]
    layer.out.bias.requires_grad_(False)

    truth = plain(layer, x)
    wanted = [x, *parameters] if x_has_gradient else parameters
    true_gradients = torch.autograd.grad((truth * weight).sum(), wanted, allow_unused=True)

    y = replayed(layer, x, truth.detach(), kept(layer, x, what), parameters)
    assert layer.runs == 0
    assert y.requires_grad
    torch.testing.assert_close(y, truth)
    gradients = torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True)
    assert layer.runs == 1
    for ours, true in zip(gradients, true_gradients, strict=True):
        assert (ours is None) == (true is None)
        if ours is not None:
            torch.testing.assert_close(ours, true)


def test_without_gradient_the_output_is_returned_as_it_is() -> None:
    layer = TinyLayer()
    x = torch.randn(B, T, H * D, dtype=torch.float64)
    with torch.no_grad():
        y = torch.randn_like(x)
        assert replayed(layer, x, y, kept(layer, x), list(layer.parameters())) is y
    assert layer.runs == 0


@pytest.mark.parametrize(
    ("what", "elements"), [("all", 2 * H * D + 2 * K * D + H), ("keys", H * D + 2 * K * D), ("nothing", H * D)]
)
def test_what_is_kept_of_a_row(what: str, elements: int) -> None:
    layer = TinyLayer()
    x = torch.randn(B, T, H * D, dtype=torch.float64, requires_grad=True)
    attended = kept(layer, x, what)
    saved: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in layer.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        replayed(layer, x, torch.zeros_like(x), attended, list(layer.parameters()))
    assert sum(saved.values()) == B * T * elements


def test_weights_that_were_trained_meanwhile_are_refused() -> None:
    layer = TinyLayer()
    x = torch.randn(B, T, H * D, dtype=torch.float64, requires_grad=True)
    y = replayed(layer, x, torch.zeros_like(x), kept(layer, x), list(layer.parameters()))
    with torch.no_grad():
        layer.out.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast_is_entered_again_in_backward() -> None:
    seen: list[torch.dtype] = []
    linear = nn.Linear(4, 4)

    def layer(x: Tensor, _attended: Attended) -> Tensor:
        y: Tensor = linear(x)
        seen.append(y.dtype)
        return y.float()

    x = torch.randn(1, 3, 4, requires_grad=True)
    empty = torch.zeros(1, 1, 3, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attended = Attended(causal(), empty, empty, empty, empty[..., 0])
        y = replayed(layer, x, torch.zeros_like(x), attended, list(linear.parameters()))
    y.sum().backward()
    assert seen == [torch.bfloat16]
    assert linear.weight.grad is not None


def test_a_layer_without_gradient_keeps_nothing() -> None:
    layer, x = TinyLayer().requires_grad_(False), torch.randn(B, T, H * D, dtype=torch.float64)
    y, host = torch.zeros_like(x), HostMemory()
    assert replayed(layer, x, y, kept(layer, x), list(layer.parameters()), host) is y
    assert host.latest is None

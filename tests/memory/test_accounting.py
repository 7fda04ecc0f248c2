"""Saved activations counted exactly, on arithmetic small enough to know the answer."""

import torch
from torch import nn

from jenga_core.memory.accounting import peak_bytes, reset_peak, saved_activations, states_bytes


def test_a_storage_counts_once_and_weights_do_not_count() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.randn(16, 8, requires_grad=True)
    with saved_activations(layer) as saved:
        y = layer(x)  # saves x (and the weight)
        z = y * y  # saves y, twice
        z = z.view(4, 32).exp()  # saves its result
    assert saved.total_bytes == 3 * 16 * 8 * 4
    z.sum().backward()


def test_nothing_is_saved_without_gradient() -> None:
    layer = nn.Linear(8, 8)
    with saved_activations(layer) as saved, torch.no_grad():
        layer(torch.randn(16, 8))
    assert saved.total_bytes == 0


def test_states_are_weights_gradients_and_optimizer() -> None:
    layer = nn.Linear(8, 8, bias=False)
    layer.twin = layer.weight  # tied weights exist once
    optimizer = torch.optim.AdamW(layer.parameters())
    assert states_bytes(layer, optimizer) == 256
    layer(torch.randn(2, 8)).sum().backward()
    assert states_bytes(layer, optimizer) == 2 * 256
    optimizer.step()
    assert states_bytes(layer, optimizer) == 4 * 256 + 4  # two moments, and the step count


def test_peak_on_a_cpu_rises_with_what_is_held() -> None:
    device = torch.device("cpu")
    reset_peak(device)
    before = peak_bytes(device)
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_bytes(device) >= before + 32 * 2**20
    del block

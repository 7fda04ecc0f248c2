"""Parcels on a device: copies run beside what is computed, and neither overwrites the other."""

from __future__ import annotations

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.memory.offload import HostMemory
from tests.patching.test_parity import with_adapter
from tests.support.tiny import tiny_batch, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MIB = 2**20


def busy(n: int = 4096) -> torch.Tensor:
    """Keeps the device computing for some milliseconds."""
    x = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    for _ in range(8):
        x = x @ x * 0.01
    return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_travels_is_not_overwritten(dtype: torch.dtype) -> None:
    """Each layer's tensors are made late, their memory is used again at once, they come back while others compute."""
    torch.manual_seed(0)
    host, parcels, expected = HostMemory(), [], []
    for _ in range(6):
        x = torch.randn(2, 1024, 2048, device="cuda", dtype=dtype) + busy().float().nan_to_num().sum().to(dtype) * 0
        k = torch.randn(2, 1024, 8, 64, device="cuda", dtype=dtype).transpose(1, 2)  # strided, as keys are
        expected.append((x.cpu(), k.cpu()))
        parcels.append(host.put([x, None, k]))
        del x, k
        torch.full((2, 1024, 2048), float("nan"), device="cuda", dtype=dtype)
    for index in reversed(range(6)):
        x, nothing, k = parcels[index].take(then=parcels[index - 1] if index else None)
        busy()
        assert nothing is None and x is not None and k is not None
        assert torch.equal(x.cpu(), expected[index][0]) and torch.equal(k.cpu(), expected[index][1])
        assert k.stride() == (1024 * 512, 64, 512, 1)
        del x, k
        torch.full((2, 1024, 2048), float("nan"), device="cuda", dtype=dtype)


def test_no_more_than_two_parcels_are_on_the_device() -> None:
    host, parcels = HostMemory(), []
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(8):
        parcels.append(host.put([torch.ones(8 * MIB, device="cuda", dtype=torch.uint8)]))
    assert torch.cuda.memory_allocated() - before == 8 * MIB
    for index in reversed(range(8)):
        assert parcels[index].take(then=parcels[index - 1] if index else None)[0] is not None
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before <= 3 * 8 * MIB  # one leaves while the next is made, one returns


def test_a_parcel_that_was_called_back_and_never_taken_harms_nobody() -> None:
    host = HostMemory()
    first, second = host.put([torch.ones(64 * MIB, device="cuda")]), host.put([torch.zeros(8, device="cuda")])
    second.take(then=first)
    del first
    host.put([])
    other = torch.full((64 * MIB,), 7.0, device="cuda")
    torch.cuda.synchronize()
    assert bool((other == 7).all())


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "lora"},
        {"preset": "jenga"},
        {"preset": "jenga", "selection": {"unselected": "forward_only"}},
        {"preset": "jenga", "selection": {"below_entry": "involved"}},
        {"preset": "jenga", "selection": {"scope": "per_layer", "loss_on": "all"}},
    ],
    ids=str,
)
def test_a_step_with_offload_has_the_same_gradients(changes: dict[str, object]) -> None:
    found = []
    for offload in (False, True):
        torch.manual_seed(0)
        model = with_adapter(tiny_model()).to("cuda", torch.bfloat16)
        batch = {name: value.cuda() for name, value in tiny_batch(batch=2, tokens=192).items()}
        apply_jenga(model, JengaConfig.parse({**changes, "recompute": "full", "offload": offload}))
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            loss = model(**batch).loss
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 8
    for without, with_offload in zip(*found, strict=True):
        assert torch.equal(without, with_offload)

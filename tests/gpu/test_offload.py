"""Parcels on a device: copies run beside what is computed, and neither overwrites the other."""

from __future__ import annotations

import pytest
import torch

from jenga_core import JengaConfig, apply_jenga
from jenga_core.memory.offload import PIECE_BYTES, HostMemory, _copy_stream
from tests.patching.test_parity import with_adapter
from tests.support.tiny import tiny_batch, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MIB = 2**20


N = 8 * MIB
"""Numbers in a tensor: its copy takes about a millisecond."""


def full(value: float) -> torch.Tensor:
    return torch.full((N,), value, device="cuda")


def late(stream: torch.cuda.Stream | None = None) -> None:
    """What is queued on the stream from now on begins a tenth of a second later; None: the current one."""
    with torch.cuda.stream(stream or torch.cuda.current_stream()):
        torch.cuda._sleep(200_000_000)


def copies(direction: str) -> torch.cuda.Stream:
    return _copy_stream(torch.device("cuda", torch.cuda.current_device()), direction)


def holds(tensor: torch.Tensor | None, value: float) -> bool:
    assert tensor is not None
    return bool((tensor == value).all())


def test_memory_is_not_used_again_before_its_content_has_left() -> None:
    host, x = HostMemory(), full(1.0)
    torch.cuda.synchronize()
    late(copies("leaving"))
    parcel, address = host.put([x]), x.data_ptr()
    del x
    others = [host.put([None])]
    other = full(float("nan"))
    assert other.data_ptr() == address and len(others) == 1
    assert holds(parcel.take()[0], 1.0)


def test_what_is_not_computed_yet_does_not_leave() -> None:
    x = full(float("nan"))
    torch.cuda.synchronize()
    late()
    x.fill_(1.0)
    parcel = HostMemory().put([x])
    parcel.let_go()
    assert holds(parcel.take()[0], 1.0)


def test_nothing_returns_into_memory_that_is_still_read() -> None:
    parcel = HostMemory().put([full(1.0)])
    parcel.let_go()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    y, z = full(2.0), full(0.0)
    address = y.data_ptr()
    late()
    z.copy_(y)
    del y
    parcel.start_return()
    (returning,) = parcel.take()
    assert returning is not None and returning.data_ptr() == address
    assert holds(z, 2.0) and holds(returning, 1.0)


def test_who_takes_waits_for_the_return() -> None:
    parcel = HostMemory().put([full(1.0)])
    parcel.let_go()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    x = full(float("nan"))
    del x  # its memory is what the tensor returns to
    torch.cuda.synchronize()
    late(copies("returning"))
    assert holds(parcel.take()[0], 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
def test_a_tensor_of_any_layout_comes_back_in_it(dtype: torch.dtype) -> None:
    """In more pieces than one, with a rest; transposed as keys are; and one with gaps, which are closed."""
    torch.manual_seed(0)
    large = torch.randn(3, PIECE_BYTES // 8 + 5, device="cuda", dtype=dtype)
    keys = torch.randn(2, 100, 8, 64, device="cuda", dtype=dtype).transpose(1, 2)
    gaps = torch.randn(4, 100, device="cuda", dtype=dtype)[:, :30]
    tensors = [large, None, keys, gaps, torch.empty(0, device="cuda", dtype=dtype)]
    expected = [None if each is None else each.clone() for each in tensors]
    parcel = HostMemory().put(tensors)
    parcel.let_go()
    for found, wanted in zip(parcel.take(), expected, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or wanted is None or torch.equal(found, wanted)
    (again,) = HostMemory().put([keys]).take()
    assert again is not None and again.stride() == keys.stride()


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
    torch.cuda.synchronize()
    late(copies("returning"))
    second.take(then=first)
    del first
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

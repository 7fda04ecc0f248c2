"""Parcels: what goes to the host's memory comes back as it was. Streams and copies: tests/gpu/test_offload.py."""

from __future__ import annotations

import torch

from jenga_core.memory.offload import HostMemory, Parcel


def test_a_parcel_gives_back_what_it_took_as_often_as_it_is_asked() -> None:
    x, k = torch.randn(2, 3), torch.randn(4)
    parcel = HostMemory().put([x, None, k])
    for _ in range(2):
        there = parcel.take()
        assert there[1] is None
        assert torch.equal(there[0], x) and torch.equal(there[2], k)  # type: ignore[arg-type]


def test_the_next_layers_parcel_pushes_the_last_one_off_the_device() -> None:
    host = HostMemory()
    first = host.put([torch.ones(3)])
    assert host.latest is first and first.is_on_device
    second = host.put([torch.zeros(3)])
    assert not first.is_on_device
    assert host.latest is second and second.is_on_device


def test_who_takes_a_parcel_calls_the_next_one_back() -> None:
    host = HostMemory()
    first, second, third = (host.put([torch.full((2,), float(number))]) for number in range(3))
    third.take(then=second)
    assert second.is_on_device and not first.is_on_device and not third.is_on_device
    assert second.take(then=first)[0].tolist() == [1, 1]  # type: ignore[union-attr]
    assert first.is_on_device


def test_a_parcel_of_nothing() -> None:
    parcel = Parcel([None])
    parcel.let_go()
    assert parcel.take() == [None]


def test_no_gradient_travels() -> None:
    (there,) = HostMemory().put([torch.ones(2, requires_grad=True) * 2]).take()
    assert there is not None and not there.requires_grad


def test_a_parcel_that_nobody_wants_is_let_go() -> None:
    host = HostMemory()
    parcel = host.put([torch.ones(3)])
    assert host.latest is parcel
    del parcel
    assert host.latest is None
    host.put([torch.ones(3)])
    assert host.latest is None

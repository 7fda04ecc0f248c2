"""What layers keep waits in the host's memory (paper, extension: sparsity-sensitive offload).

With `recompute='full'` a layer keeps a few large tensors: its rows' input and, below the entry layer, the keys and
values that they attend to. With `offload` they leave the device as one *parcel* while the next layer computes, and come
back one layer ahead of their turn:

    forward    compute   | layer 0 | layer 1 | layer 2 |
               copies              | 0 leaves| 1 leaves| 2 leaves

    backward   compute   | layer 2 | layer 1 | layer 0 |
               copies    |1 returns|0 returns|

The paper gives every layer a budget by its measured sparsity. Here that follows from what is kept: a layer's parcel is
what its involved tokens left, so a layer with fewer of them moves less, and no layer has more than two on the device.

Copies run on a stream of their own. The host waits for nothing; the compute stream waits for a copy before memory that
it read is used again, and before a parcel that came back is read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]


class HostMemory:
    """Takes parcels from one device, in the order in which layers compute."""

    def __init__(self) -> None:
        self._latest: Parcel | None = None

    @property
    def latest(self) -> Parcel | None:
        """What was sent last, and is still on the device, too."""
        return self._latest

    def put(self, tensors: Tensors) -> Parcel:
        """Send them off."""
        self.let_go()
        self._latest = Parcel(tensors)
        return self._latest

    def let_go(self) -> None:
        """Of what is still on the device, too."""
        if self._latest is not None:
            self._latest.let_go()


class Parcel:
    """Tensors that lie in the host's memory; None stays None."""

    def __init__(self, tensors: Tensors) -> None:
        self._on_device: list[Tensor | None] | None = [None if each is None else each.detach() for each in tensors]
        self._devices = [None if each is None else each.device for each in tensors]
        with _Copying(self._device) as copying:
            self._host = [None if each is None else _to_host(each) for each in self._on_device]
        self._copied = copying.done

    def __del__(self) -> None:
        self.let_go()

    @property
    def is_on_device(self) -> bool:
        """Leaving, or returning."""
        return self._on_device is not None

    def let_go(self) -> None:
        """Of what is on the device; what is computed from now on may use its memory."""
        if self._on_device is not None:
            self._wait()
        self._on_device = None

    def start_return(self) -> None:
        """Begin to bring the tensors back, if they are not there."""
        if self._on_device is not None:
            return
        places = zip(self._host, self._devices, strict=True)
        # In memory of the stream that will compute with them, and that will let them go.
        returning = [host if host is None or host.device == device else torch.empty_like(host, device=device)
                     for host, device in places]  # fmt: skip
        with _Copying(self._device) as copying:
            for there, host in zip(returning, self._host, strict=True):
                if there is not None and host is not None and there is not host:
                    there.copy_(host, non_blocking=True)
        self._on_device, self._copied = returning, copying.done

    def take(self, then: Parcel | None = None) -> list[Tensor | None]:
        """The tensors, on their device. They can be taken again.

        Args:
            then: the parcel that is wanted next; it begins to return.
        """
        self.start_return()
        self._wait()
        tensors, self._on_device = self._on_device, None
        assert tensors is not None
        if then is not None:
            then.start_return()
        return tensors

    @property
    def _device(self) -> torch.device | None:
        return next((device for device in self._devices if device is not None), None)

    def _wait(self) -> None:
        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)


class _Copying:
    """While the block runs, copies wait for what was computed, and computing does not wait for them."""

    def __init__(self, device: torch.device | None) -> None:
        self._stream = _copy_stream(device) if device is not None and device.type == "cuda" else None
        self.done: torch.cuda.Event | None = None
        """Past when the copies are done; None where they are done at once."""

    def __enter__(self) -> _Copying:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._within = torch.cuda.stream(self._stream)
            self._within.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._stream is not None:
            self.done = self._stream.record_event()
            self._within.__exit__(*raised)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)

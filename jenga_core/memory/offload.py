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

Copies run on streams of their own, one for each direction. The host waits for nothing; a compute stream waits for a
copy before memory that it read is used again, and before a parcel that came back is read.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PIECE_BYTES = 64 * 2**20
"""Tensors lie in the host's memory in pieces of this size. PyTorch rounds pinned memory up to a power of two and uses
it again for the same size only; whole tensors would take two to three times what they hold."""

Tensors = Sequence[Tensor | None]


class HostMemory:
    """Takes parcels from one device, in the order in which layers compute. Who was given a parcel keeps it alive."""

    def __init__(self) -> None:
        self._latest: weakref.ref[Parcel] | None = None

    @classmethod
    def of(cls, device: torch.device) -> HostMemory | None:
        """For what that device computes; None where it computes in the host's memory."""
        return cls() if device.type == "cuda" else None

    @property
    def latest(self) -> Parcel | None:
        """What was sent last, if it is still wanted; until the next is sent it is on the device, too."""
        return None if self._latest is None else self._latest()

    def put(self, tensors: Tensors) -> Parcel:
        """Send them off. Raises MemoryError when the host has no room."""
        self.let_go()
        parcel = Parcel(tensors)
        self._latest = weakref.ref(parcel)
        return parcel

    def let_go(self) -> None:
        """Of what is still on the device, too."""
        if (latest := self.latest) is not None:
            latest.let_go()


class Parcel:
    """Tensors that lie in the host's memory; None stays None."""

    def __init__(self, tensors: Tensors) -> None:
        self._copying: _Copying | None = None
        self._on_device: list[Tensor | None] | None = None
        self._on_device = [None if each is None else _dense(each) for each in tensors]
        self._copying = _Copying(self._on_device, "leaving")
        with self._copying:
            self._in_host_memory = [None if each is None else _InPieces.of(each) for each in self._on_device]

    def __del__(self) -> None:
        self.let_go()

    @property
    def is_on_device(self) -> bool:
        """Leaving, or returning."""
        return self._on_device is not None

    def let_go(self) -> None:
        """Of what is on the device; what is computed from now on may use its memory."""
        if self._on_device is not None and self._copying is not None:
            self._copying.before_memory_is_used_again()
        self._on_device = None

    def start_return(self) -> None:
        """Begin to bring the tensors back, if they are not there."""
        if self._on_device is not None:
            return
        self._on_device = [None if each is None else each.place() for each in self._in_host_memory]
        self._copying = _Copying(self._on_device, "returning")
        with self._copying:
            for there, each in zip(self._on_device, self._in_host_memory, strict=True):
                if there is not None and each is not None:
                    each.copy_to(there)

    def take(self, then: Parcel | None = None) -> list[Tensor | None]:
        """The tensors, on their device. They can be taken again.

        Args:
            then: the parcel that is wanted next; it begins to return.
        """
        self.start_return()
        tensors, self._on_device = self._on_device, None
        assert tensors is not None and self._copying is not None
        self._copying.before_content_is_read()
        if then is not None:
            then.start_return()
        return tensors


@dataclass(frozen=True)
class _InPieces:
    """One tensor in the host's memory. Of one that was there all along, itself."""

    like: Tensor
    """On the meta device: shape, strides and dtype; or the tensor itself."""
    device: torch.device
    pieces: list[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> _InPieces:
        """A copy that may not be finished. Raises MemoryError when the host has no room."""
        if not tensor.is_cuda:
            return cls(tensor, tensor.device, [])
        try:
            pieces = [torch.empty_like(part, device="cpu", pin_memory=True) for part in _pieces(tensor)]
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise MemoryError(
                f"the host has no {tensor.nbytes / 2**30:.2f} GiB left to pin, where offload keeps what layers leave; "
                "leave offload out, or use fewer tokens"
            ) from error
        for piece, part in zip(pieces, _pieces(tensor), strict=True):
            piece.copy_(part, non_blocking=True)
        like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return cls(like, tensor.device, pieces)

    def place(self) -> Tensor:
        """On the device, without the content; in memory of the stream that is current."""
        return self.like if not self.pieces else torch.empty_like(self.like, device=self.device)

    def copy_to(self, there: Tensor) -> None:
        """Begin to."""
        if self.pieces:
            for part, piece in zip(_pieces(there), self.pieces, strict=True):
                part.copy_(piece, non_blocking=True)


class _Copying:
    """While the block runs, copies wait for what was computed, and computing does not wait for them."""

    def __init__(self, tensors: Tensors, direction: Literal["leaving", "returning"]) -> None:
        device = next((each.device for each in tensors if each is not None), None)
        self._stream = None if device is None or device.type != "cuda" else _copy_stream(device, direction)
        self._done: torch.cuda.Event | None = None

    def __enter__(self) -> None:
        if self._stream is not None:
            self._computing = torch.cuda.current_stream(self._stream.device)
            self._stream.wait_stream(self._computing)
            self._within = torch.cuda.stream(self._stream)
            self._within.__enter__()

    def __exit__(self, *raised: object) -> None:
        if self._stream is not None:
            self._done = self._stream.record_event()
            self._within.__exit__(*raised)

    def before_memory_is_used_again(self) -> None:
        """The stream whose memory it is waits for the copies."""
        if self._done is not None:
            self._computing.wait_event(self._done)

    def before_content_is_read(self) -> None:
        """The current stream waits for the copies."""
        if self._done is not None and self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._done)


@functools.cache
def _copy_stream(device: torch.device, direction: str) -> torch.cuda.Stream:
    """Each direction has its own: a bus carries both at once."""
    return torch.cuda.Stream(device)


def _dense(tensor: Tensor) -> Tensor:
    """Without gradient, and without gaps between its elements, which may be in any order."""
    tensor = tensor.detach()
    like = torch.empty_like(tensor, device="meta")
    return tensor if like.stride() == tensor.stride() else torch.empty_like(tensor).copy_(tensor)


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Of a dense tensor, in the order of its memory."""
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.split(PIECE_BYTES // tensor.element_size())

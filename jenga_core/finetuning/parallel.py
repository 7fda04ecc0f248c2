"""One adapter trained on several devices: every rank has the whole model and its own share of the data.

    g = 1/n sum over ranks of g_r      the adapter's gradients, averaged once per optimizer step

Only the adapter is trained, a few megabytes, so averaging is one call after the last micro-batch's backward pass. No
wrapper goes around the model, and how backward computes its gradients (recomputing, replaying rows) does not matter.
Ranks start from the same weights and take the same steps on the same gradients, so they stay equal; rank 0 speaks,
saves and publishes for all of them. What a rank decides alone, such as to stop, all of them must agree on, or the rest
would wait for it for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

if TYPE_CHECKING:
    from datasets import Dataset

PATIENCE = timedelta(hours=12)
"""How long ranks wait for each other; rank 0 may calibrate meanwhile."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one adapter."""

    rank: int = 0
    size: int = 1

    def share(self, sequences: Dataset) -> Dataset:
        """Every size-th sequence, from rank on; the first ones again where the last round has not enough for all."""
        if self.size == 1:
            return sequences
        rounds = -(-len(sequences) // self.size)
        return sequences.select([(step * self.size + self.rank) % len(sequences) for step in range(rounds)])

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """In place, over all ranks."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = parameters_to_vector(gradients)
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """Of a number, over all ranks."""
        if self.size == 1:
            return value
        mean = value.detach().clone()
        dist.all_reduce(mean)
        return mean / self.size

    def any(self, wish: bool, device: torch.device) -> bool:
        """Whether some rank wants to."""
        if self.size == 1:
            return wish
        wanted = torch.tensor(float(wish), device=device)
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        return bool(wanted.item())

    def wait_for_all(self) -> None:
        """Go on when every rank is here."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()


def join(rank: int, size: int, rendezvous: Path, device: torch.device) -> Ranks:
    """Meet the other ranks at a file that all of them can see and that did not exist before the first came."""
    if size == 1:
        return ALONE
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=PATIENCE)
    return Ranks(rank, size)


def leave() -> None:
    """Let go of the others; harmless for one that is alone."""
    if dist.is_initialized():
        dist.destroy_process_group()

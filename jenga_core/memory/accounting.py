"""Memory that was used, by kind, counted the same way on a CPU and on a GPU.

    states        weights, gradients, optimizer state
    activations   distinct storages that autograd saved for backward, weights excluded
    other         peak less the two above: temporaries, the allocator, and on a CPU the process itself

Activations are counted with saved-tensor hooks: autograd asks a hook for every tensor it keeps, and a storage that ten
operations keep counts once. That number is a property of the program, not of the machine: it is the same on every run.
What waits in the host's memory (offload.py) is not among them.
The peak is the machine's: the CUDA allocator's high-water mark, or on a CPU the process's resident memory.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass
class SavedActivations:
    """Filled while `saved_activations` is active."""

    storage_bytes: dict[int, int] = field(default_factory=dict)
    """Size by address of every distinct storage that autograd kept."""

    @property
    def total_bytes(self) -> int:
        """Their sum."""
        return sum(self.storage_bytes.values())


@contextmanager
def saved_activations(model: nn.Module) -> Iterator[SavedActivations]:
    """Count what autograd saves for backward in this block; the weights and buffers of `model` are left out.

    Read the total before backward runs, while everything saved is alive and addresses are distinct.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = SavedActivations()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved.storage_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def states_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Bytes of weights, buffers, gradients and optimizer state; a shared storage counts once."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    tensors += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if optimizer is not None:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return distinct_bytes(tensors)


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum over distinct storages."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def reset_peak(device: torch.device) -> None:
    """Begin a phase: forget the high-water mark."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_resident_peak()


def peak_bytes(device: torch.device) -> int:
    """High-water mark since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_resident_peak() -> None:
    """Linux resets VmHWM when 5 is written here; where that is not allowed the peak is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return

"""What dense LoRA would save for backward: the same model, adapter and batch, one step, in the same process.

When the dense step does not fit (or would not be reasonable to try on a CPU), it is measured at two shorter lengths and
extended along the line through them: with memory-efficient attention, what a transformer saves grows linearly with the
number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from jenga_core.memory.accounting import peak_bytes, reset_peak, saved_activations, states_bytes
from jenga_core.patching.apply import JengaHandle

LONGEST_ON_CPU_TOKENS = 4096


@dataclass(frozen=True)
class DenseReference:
    """One dense forward and backward."""

    activation_bytes: int
    states_bytes: int
    peak_bytes: int
    """Of the steps that were run; for an extended measurement, of the shorter ones."""

    measured_tokens: int
    """Of the longest step that was run; fewer than `tokens` when the figure was extended."""

    tokens: int
    """Of the batch's sequences."""


def measure_dense(model: torch.nn.Module, handle: JengaHandle, batch: Mapping[str, Tensor]) -> DenseReference:
    """Run the dense step on this batch, which lies on the model's device, then clear the gradients.

    Leaves the model in train mode, random numbers as they were, and the peak at that of the step.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        measured = _measure(model, handle, batch, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # a graph that is captured later has a pool of its own
    return measured


def _measure(
    model: torch.nn.Module, handle: JengaHandle, batch: Mapping[str, Tensor], device: torch.device
) -> DenseReference:
    tokens = batch["input_ids"].shape[1]
    reset_peak(device)
    if device.type == "cuda" or tokens <= LONGEST_ON_CPU_TOKENS:
        with suppress(torch.OutOfMemoryError):
            activation_bytes = _dense_step(model, handle, batch)
            return DenseReference(activation_bytes, states_bytes(model), peak_bytes(device), tokens, tokens)
        # Behind the block the error is gone, and with it what its traceback held.
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        reset_peak(device)
    longer = min(tokens // 4, LONGEST_ON_CPU_TOKENS)
    shorter = longer // 2
    at_shorter = _dense_step(model, handle, _first(batch, shorter))
    at_longer = _dense_step(model, handle, _first(batch, longer))
    per_token = (at_longer - at_shorter) / (longer - shorter)
    extended = round(at_longer + per_token * (tokens - longer))
    return DenseReference(extended, states_bytes(model), peak_bytes(device), longer, tokens)


def _dense_step(model: torch.nn.Module, handle: JengaHandle, batch: Mapping[str, Tensor]) -> int:
    model.train()
    with handle.disabled(), saved_activations(model) as saved:
        loss = model(**batch).loss
    total = saved.total_bytes
    loss.backward()
    model.zero_grad(set_to_none=True)
    return total


def _first(batch: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    return {name: tensor[:, :tokens] for name, tensor in batch.items()}

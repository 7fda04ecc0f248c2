"""Held-out loss of the model as a user will serve it: dense, with its adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jenga_core.finetuning.data import PadRight
from jenga_core.loss.segmented_cross_entropy import IGNORE, segmented_cross_entropy
from jenga_core.patching.parts import parts_of


@dataclass(frozen=True)
class HeldOut:
    """Mean next-token loss over all labels of the evaluated windows."""

    loss: float
    """Nats per token."""

    tokens: int
    windows: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


def evaluate(
    model: nn.Module,
    sequences: Sequence[dict[str, Any]],
    collate: PadRight,
    *,
    windows: int,
    segment_tokens: int,
    tick: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Run the dense model in eval mode over `windows` sequences, spread evenly, one at a time; `tick` is called after
    each, and may raise."""
    parts = parts_of(model)
    device = next(model.parameters()).device
    count = min(windows, len(sequences))
    chosen = [index * len(sequences) // count for index in range(count)]
    was_training = model.training
    model.eval()
    loss, labels = 0.0, 0
    with torch.no_grad():
        for index in chosen:
            batch = {name: tensor.to(device) for name, tensor in collate([sequences[index]]).items()}
            targets = batch.pop("labels")[:, 1:]
            hidden = parts.decoder(**batch, use_cache=False).last_hidden_state[:, :-1]
            loss += float(
                segmented_cross_entropy(
                    hidden,
                    parts.head.weight,
                    targets,
                    segment_tokens=segment_tokens,
                    softcap=parts.logit_softcap,
                )
            )
            labels += int((targets != IGNORE).sum())
            tick()
    model.train(was_training)
    return HeldOut(loss / max(labels, 1), labels, count)

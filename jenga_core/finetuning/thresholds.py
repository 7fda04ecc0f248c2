"""Algorithm 1 on a real model: initial means and held-out accuracy, measured on calibration sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jenga_core.config import CalibrationConfig, SelectionConfig
from jenga_core.elimination.thresholds import Thresholds, search
from jenga_core.loss.segmented_cross_entropy import IGNORE
from jenga_core.patching.apply import JengaHandle

LONGEST_ON_CPU_TOKENS = 512


def calibrate(
    handle: JengaHandle,
    batches: Sequence[Mapping[str, Tensor]],
    config: CalibrationConfig,
    *,
    tick: Callable[[], None] = lambda: None,
    sweep_done: Callable[[int], None] = lambda sweep: None,
) -> Thresholds:
    """Find the thresholds of the handle's selection and put them into the handle. Deterministic; no gradient.

    Args:
        batches: model arguments (input_ids, attention_mask, labels) of held-out text, on any device.
        tick: called after each batch of each accuracy; may raise.
        sweep_done: called after each sweep over the layers, with its number from 1.
    """
    model, selection = handle.parts.causal_lm, handle.config.selection
    device = next(model.parameters()).device
    longest = None if device.type == "cuda" else LONGEST_ON_CPU_TOKENS
    on_device = [{name: tensor[:, :longest].to(device) for name, tensor in batch.items()} for batch in batches]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            initial = mean_block_scores(handle, on_device, selection)

            def accuracy(by_layer: Mapping[int, float]) -> float:
                handle.thresholds = Thresholds(by_layer, initial, 0.0, 0.0)
                return next_token_accuracy(handle, on_device, selection, tick=tick)

            found = search(
                initial,
                accuracy,
                sweeps=config.sweeps,
                epsilon=config.epsilon,
                eta=config.eta,
                sweep_done=sweep_done,
            )
    finally:
        handle.thresholds = None
        model.train(was_training)
    handle.thresholds = found
    return found


def mean_block_scores(
    handle: JengaHandle, batches: Sequence[Mapping[str, Tensor]], selection: SelectionConfig
) -> dict[int, float]:
    """The mean score over all blocks, of each layer that selects, in the dense model; asked by those that will ask."""
    keep_all = selection.model_copy(update={"by": "threshold", "below_entry": "involved", "unselected": "eliminated"})
    totals: dict[int, float] = {}
    counts: dict[int, int] = {}
    before = handle.thresholds
    handle.thresholds = Thresholds(dict.fromkeys(handle.selecting_layers, -math.inf), {}, 0.0, 0.0)
    try:
        for batch in batches:
            _, involvement = handle.run(batch, keep_all)
            exists_BN = involvement.blocks.document_of_block_BN >= 0
            for layer, scores_BN in involvement.scores.items():
                totals[layer] = totals.get(layer, 0.0) + float(scores_BN[exists_BN].double().sum())
                counts[layer] = counts.get(layer, 0) + int(exists_BN.sum())
    finally:
        handle.thresholds = before
    return {layer: totals[layer] / counts[layer] for layer in totals}


def next_token_accuracy(
    handle: JengaHandle,
    batches: Sequence[Mapping[str, Any]],
    selection: SelectionConfig,
    *,
    segment_tokens: int = 1024,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """Share of all labels that the sparse model predicts rightly; an eliminated token predicts from its residual."""
    forward = selection.model_copy(update={"loss_on": "all", "below_entry": "involved"})
    right, labels = 0, 0
    for batch in batches:
        hidden_BTE, involvement = handle.run(batch, forward)
        targets = involvement.loss_targets()
        rows = targets != IGNORE
        for hidden, target in zip(
            hidden_BTE[rows].split(segment_tokens), targets[rows].split(segment_tokens), strict=True
        ):
            right += int((handle.parts.head(hidden).argmax(dim=-1) == target).sum())
        labels += int(rows.sum())
        tick()
    return right / max(labels, 1)

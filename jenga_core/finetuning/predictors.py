"""Predictors for a real model: look at what enters each layer that selects, at its exact scores, and learn.

Layer by layer, the frozen model runs over the sequences up to that layer and no further; residual streams wait in the
host's memory, in the model's own dtype. An adapter that is there stays on; a fresh one changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.informativeness import block_scores, reach_of_window
from jenga_core.errors import DataError
from jenga_core.finetuning.data import PadRight
from jenga_core.patching.apply import JengaHandle
from jenga_core.patching.queries_and_keys import queries_and_keys
from jenga_core.prediction.predictor import Predictors
from jenga_core.prediction.training import LayerReport, Sample, train_layer

HELD_OUT_EVERY = 8
"""Of so many sequences one is held out."""


def train_predictors(
    handle: JengaHandle,
    sequences: Sequence[dict[str, Any]],
    collate: PadRight,
    *,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Predictors, dict[int, LayerReport]]:
    """Train one predictor for each layer that selects under the handle's config. Deterministic for a seed.

    Args:
        sequences: of the training file; as many as hold `predictor.tokens` are taken, spread evenly.
        tick: called after every sequence and every step; what it raises ends the training.

    Raises:
        DataError: fewer than two sequences: none could be held out.
    """
    if len(sequences) < 2:
        raise DataError(
            f"predictors need at least 2 sequences, one to learn from and one to measure on; got {len(sequences)}. "
            "Give more text, a smaller jenga.context_length_tokens, or set jenga.selection.score to 'exact'"
        )
    config = handle.config
    device = next(handle.parts.causal_lm.parameters()).device
    batches = [collate([sequences[index]]) for index in _spread(sequences, config.predictor.tokens)]
    held_out = set(range(HELD_OUT_EVERY // 2, len(batches), HELD_OUT_EVERY)) or {len(batches) - 1}
    by_layer, reports = {}, {}
    for layer in handle.selecting_layers:
        samples, reach_blocks = _samples_at(handle, layer, batches, tick)
        by_layer[layer], reports[layer] = train_layer(
            [sample for index, sample in enumerate(samples) if index not in held_out],
            [samples[index] for index in sorted(held_out)],
            config.selection,
            config.predictor,
            seed=seed,
            device=device,
            reach_blocks=reach_blocks,
            tick=tick,
        )
    return Predictors(by_layer), reports


def _spread(sequences: Sequence[dict[str, Any]], tokens: int) -> list[int]:
    """Indices of about as many sequences as hold `tokens`, at least two, evenly spread."""
    longest = max(len(sequences[0]["input_ids"]), len(sequences[1]["input_ids"]))
    count = min(max(math.ceil(tokens / longest), 2), len(sequences))
    return [index * len(sequences) // count for index in range(count)]


def _samples_at(
    handle: JengaHandle, layer: int, batches: Sequence[Mapping[str, Tensor]], tick: Callable[[], None]
) -> tuple[list[Sample], int | None]:
    """What enters `layer` and its exact scores, for each batch, on the CPU; and how many blocks back it reaches."""
    parts, block_tokens = handle.parts, handle.config.selection.block_tokens
    device = next(parts.causal_lm.parameters()).device
    samples: list[Sample] = []
    reach_blocks = None
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        x_BTE, arguments = _entering(parts.decoder, parts.layers[layer], inputs)
        asked = queries_and_keys(parts.layers[layer], parts.architecture, x_BTE, arguments)
        blocks = split_into_blocks(
            *x_BTE.shape[:2], block_tokens=block_tokens, attention_mask_BT=inputs["attention_mask"], device=device
        )
        scores_BNN = block_scores(
            asked.q_BHTD, asked.k_BKTD, blocks, scale=asked.scale, window_tokens=asked.window_tokens
        )
        samples.append(Sample(x_BTE, scores_BNN, blocks).to(torch.device("cpu")))
        reach_blocks = reach_of_window(asked.window_tokens, block_tokens)
        tick()
    return samples, reach_blocks


def _entering(decoder: nn.Module, layer: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """The residual stream that enters the layer, and the layer's other arguments; nothing behind it is computed."""

    def reached(_layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(given[0] if given else named.pop("hidden_states"), named)

    hook = layer.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        with torch.no_grad(), _in_eval_mode(decoder):
            decoder(**inputs, use_cache=False)
    except _Reached as there:
        return there.x_BTE, there.arguments
    finally:
        hook.remove()
    raise AssertionError("the decoder did not call its layer")


class _Reached(Exception):
    """Ends the forward at the layer of interest."""

    def __init__(self, x_BTE: Tensor, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.x_BTE = x_BTE
        self.arguments = arguments


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)

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

from jenga_core.elimination.blocks import Blocks, split_into_blocks
from jenga_core.elimination.informativeness import block_scores
from jenga_core.errors import DataError
from jenga_core.finetuning.data import PadRight
from jenga_core.layers.attention import AttentionCall
from jenga_core.patching.apply import JengaHandle
from jenga_core.patching.attention_calls import attention_call
from jenga_core.prediction.predictor import Predictors, normed
from jenga_core.prediction.start import Projections, unrotated
from jenga_core.prediction.training import LayerReport, Sample, train_layer

TOKENS_PER_CHANNEL = 16
"""The layer's own queries and keys are fitted on so many tokens for every channel of the residual stream."""

_PROBES = 64
"""Sequences whose lengths tell how many hold so many tokens."""

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
        samples, projections = samples_at(handle, layer, batches, tick)
        by_layer[layer], reports[layer] = train_layer(
            [sample for index, sample in enumerate(samples) if index not in held_out],
            [samples[index] for index in sorted(held_out)],
            projections,
            config.selection,
            config.predictor,
            seed=seed,
            device=device,
            tick=tick,
        )
    return Predictors(by_layer), reports


def _spread(sequences: Sequence[dict[str, Any]], tokens: int) -> list[int]:
    """Indices of about as many sequences as hold `tokens`, at least two, evenly spread."""
    probes = min(len(sequences), _PROBES)
    mean = sum(len(sequences[index * len(sequences) // probes]["input_ids"]) for index in range(probes)) / probes
    count = min(max(math.ceil(tokens / mean), 2), len(sequences))
    return [index * len(sequences) // count for index in range(count)]


def samples_at(
    handle: JengaHandle,
    layer: int,
    batches: Sequence[Mapping[str, Tensor]],
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[Sample], Projections]:
    """What enters `layer` and its exact scores, for each batch, on the CPU; and what it makes of some of the tokens, on
    the model's device."""
    parts, block_tokens = handle.parts, handle.config.selection.block_tokens
    device = next(parts.causal_lm.parameters()).device
    samples: list[Sample] = []
    seen: list[Projections] = []
    wanted_tokens = TOKENS_PER_CHANNEL * parts.causal_lm.config.hidden_size
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        x_BTE, arguments = _entering(parts.decoder, parts.layers[layer], inputs)
        with _in_eval_mode(parts.decoder):  # nothing is dropped out of a score
            asked = attention_call(parts.layers[layer], parts.architecture, x_BTE, arguments)
        blocks = split_into_blocks(
            *x_BTE.shape[:2], block_tokens=block_tokens, attention_mask_BT=inputs["attention_mask"], device=device
        )
        scores_BNN = block_scores(
            asked.q_BHGD, asked.k_BKGD, blocks, scale=asked.scale, window_tokens=asked.window_tokens
        )
        samples.append(Sample(x_BTE, scores_BNN, blocks).to(torch.device("cpu")))
        if sum(len(each.x_PE) for each in seen) < wanted_tokens:
            seen.append(_projections(x_BTE, asked, blocks, arguments.get("position_embeddings")))
        tick()
    return samples, Projections(
        torch.cat([each.x_PE for each in seen]),
        torch.cat([each.q_PHD for each in seen]),
        torch.cat([each.k_PKD for each in seen]),
        seen[0].speed_C,
        seen[0].scale,
        seen[0].window_tokens,
    )


def _projections(
    x_BTE: Tensor, asked: AttentionCall, blocks: Blocks, position_embeddings: tuple[Tensor, Tensor] | None
) -> Projections:
    """Of the real tokens of one batch."""
    is_real_BT = blocks.block_of_token_BT >= 0
    q_BHTD, speed_C = unrotated(asked.q_BHGD, position_embeddings)
    k_BKTD, _ = unrotated(asked.k_BKGD, position_embeddings)
    return Projections(
        normed(x_BTE)[is_real_BT],
        q_BHTD.transpose(1, 2)[is_real_BT],
        k_BKTD.transpose(1, 2)[is_real_BT],
        speed_C,
        asked.scale,
        asked.window_tokens,
    )


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

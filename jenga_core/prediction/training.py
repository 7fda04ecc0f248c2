"""Fit one layer's predictor to the exact scores of the frozen model, and say how well it chooses.

The loss is smooth L1 between predicted and exact I_mn, in units of the mean exact score, over what some query blocks,
drawn anew in every step, ask of all that they see. (A cross entropy on "is the block kept?" beside it fits the training
sequences better and chooses worse on others.) The first block of a document, the attention sink, towers over the others
and is kept whatever it scores: its column is left out.

What a predictor is worth is how it chooses. The first block of a document and its targets (without any, its last block)
are kept whatever they score, so they are not counted:

    recall      of the blocks that exact scores choose, the share that predicted scores choose
    precision   of the blocks that predicted scores choose, the share that exact scores choose
    score_share of the exact score that exact scores' blocks hold, the share that predicted scores' blocks hold: near
                ties cost recall, but not this
    chance      the recall that choosing blindly would have
    recent      the recall that choosing the last blocks would have; attention likes what is near, so it may be high

With `keep_fraction` both choose equally many blocks, so recall and precision are one number.

Shapes   B batch, T tokens, N blocks, M query blocks, S their tokens, E hidden size
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jenga_core.config import PredictorConfig, SelectionConfig
from jenga_core.elimination.blocks import Blocks
from jenga_core.elimination.selection import indispensable, select
from jenga_core.elimination.targets import target_blocks
from jenga_core.prediction.elastic_size import ElasticSize
from jenga_core.prediction.pair_maxima import pair_maxima
from jenga_core.prediction.predictor import LayerPredictor
from jenga_core.prediction.start import Projections, start

QUERY_BLOCKS = 16
"""Of a sequence, in a step. What a step costs grows with the length, not with its square."""

PLACES = 4
"""Where targets are a run of blocks, a sequence is measured with so many."""

WARM_UP_STEPS = 20
PRUNINGS = 4
"""Prunings are spread over the first three quarters of the steps; the last quarter mends."""


@dataclass(frozen=True)
class Sample:
    """One or more sequences as they enter the layer, and what the frozen model's attention makes of them there."""

    x_BTE: Tensor
    """Residual stream, any float dtype, on any device."""

    scores_BNN: Tensor
    """Exact I_mn, float32."""

    blocks: Blocks
    """To learn from: one document per sequence, padded on the right if at all."""

    def to(self, device: torch.device) -> Sample:
        """The same on a device."""
        return Sample(self.x_BTE.to(device), self.scores_BNN.to(device), self.blocks.to(device))


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer's predictor."""

    recall: float
    precision: float
    score_share: float
    chance: float
    recent: float
    held_out_blocks: int
    """Blocks that exact scores choose in the held-out sequences: what recall is a share of."""

    parameters: int
    query_hidden: tuple[int, int]
    key_hidden: tuple[int, int]
    """Neurons that are left."""

    final_loss: float
    """Mean over the last tenth of the steps."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def train_layer(
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    projections: Projections,
    selection: SelectionConfig,
    config: PredictorConfig,
    *,
    seed: int,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> tuple[LayerPredictor, LayerReport]:
    """Train on `samples`, drawn again and again, and measure on `held_out`. The same seed gives the same predictor.

    Args:
        projections: what the layer itself makes of some tokens; where the predictor starts.
        tick: called after every step; what it raises ends the training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = start(projections, head_size=config.head_size, hidden=config.hidden)
    predictor.to(device).train()
    unit = _mean_score(samples, predictor)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=config.learning_rate)
    elastic = [ElasticSize(network, optimizer) for network in (predictor.query, predictor.key)]
    prune_every_steps = max(config.steps * 3 // (4 * PRUNINGS), 1)
    draw = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        drawn = torch.randint(len(samples), (config.samples_per_step,), generator=draw).tolist()
        total = 0.0
        for index in drawn:
            loss = _loss(predictor, samples[index].to(device), unit, draw) / len(drawn)
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if step % prune_every_steps == 0 and step <= config.steps * 3 // 4:
            for each in elastic:
                each.prune()
        tick()
    for each in elastic:
        each.close()
    predictor.eval().requires_grad_(False)
    last = losses[-max(len(losses) // 10, 1) :]
    found = measure(predictor, held_out, selection)
    return predictor, LayerReport(
        recall=found.recall,
        precision=found.precision,
        score_share=found.score_share,
        chance=found.chance,
        recent=found.recent,
        held_out_blocks=found.wanted,
        parameters=predictor.num_parameters,
        query_hidden=predictor.query.hidden,
        key_hidden=predictor.key.hidden,
        final_loss=sum(last) / len(last),
    )


@dataclass
class Found:
    """Counts of blocks over some sequences, forced ones left out."""

    wanted: int = 0
    """Chosen by exact scores."""

    chosen: int = 0
    """Chosen by predicted scores."""

    both: int = 0
    among_recent: int = 0
    """Of the wanted ones, those that would be chosen for being last."""

    by_chance: float = 0.0
    """Of the wanted ones, those that as many blind choices would hit."""

    wanted_score: float = 0.0
    chosen_score: float = 0.0
    """Sum of the exact scores of those blocks."""

    @property
    def recall(self) -> float:
        """In [0, 1]; 1 where there was nothing to find, as for the other shares."""
        return _share(self.both, self.wanted)

    @property
    def precision(self) -> float:
        """In [0, 1]."""
        return _share(self.both, self.chosen)

    @property
    def score_share(self) -> float:
        """In [0, 1]."""
        return _share(self.chosen_score, self.wanted_score)

    @property
    def chance(self) -> float:
        """In [0, 1]."""
        return _share(self.by_chance, self.wanted)

    @property
    def recent(self) -> float:
        """In [0, 1]."""
        return _share(self.among_recent, self.wanted)


def measure(predictor: LayerPredictor, samples: Sequence[Sample], selection: SelectionConfig) -> Found:
    """Choose blocks by exact and by predicted scores at the same keep_fraction, and compare."""
    found = Found()
    for index, sample in enumerate(samples):
        sample = sample.to(predictor.speed_KC.device)
        blocks = sample.blocks
        predicted_BNN = predictor.pair_scores(sample.x_BTE, blocks)
        for target_BN in _targets(blocks, selection, index):
            asking_BN = target_BN if selection.asked_by == "targets" else None
            exact_BN = predictor.pool(sample.scores_BNN, blocks, selection.column, asking_BN)
            predicted_BN = predictor.pool(predicted_BNN, blocks, selection.column, asking_BN)
            position_BN = torch.arange(blocks.num_blocks, device=exact_BN.device).float().expand_as(exact_BN)
            is_free_BN, wanted_BN = _choice(exact_BN, blocks, selection, target_BN)
            _, chosen_BN = _choice(predicted_BN, blocks, selection, target_BN)
            _, recent_BN = _choice(position_BN, blocks, selection, target_BN)
            wanted, chosen = int(wanted_BN.sum()), int(chosen_BN.sum())
            found.wanted += wanted
            found.chosen += chosen
            found.both += int((wanted_BN & chosen_BN).sum())
            found.among_recent += int((wanted_BN & recent_BN).sum())
            found.by_chance += wanted * chosen / max(int(is_free_BN.sum()), 1)
            found.wanted_score += float(exact_BN[wanted_BN].sum())
            found.chosen_score += float(exact_BN[chosen_BN].sum())
    return found


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _loss(predictor: LayerPredictor, sample: Sample, unit: float, draw: torch.Generator) -> Tensor:
    """Of QUERY_BLOCKS query blocks of each sequence."""
    blocks, b = sample.blocks, sample.blocks.block_tokens
    assert blocks.is_plain
    counts_BNN = _counted_pairs(blocks, predictor.reach_blocks(blocks))
    N, T = blocks.num_blocks, sample.x_BTE.shape[1]
    x_BTE = F.pad(sample.x_BTE, (0, 0, 0, N * b - T)) if N * b > T else sample.x_BTE[:, : N * b]
    block_M = torch.randperm(N, generator=draw)[:QUERY_BLOCKS].sort().values.to(x_BTE.device)
    position_S = (block_M[:, None] * b + torch.arange(b, device=x_BTE.device)).flatten()
    q_BHSd = predictor.queries(x_BTE[:, position_S], position_S)
    k_BKTd = predictor.keys(x_BTE, torch.arange(N * b, device=x_BTE.device))
    predicted_BMN = torch.stack(
        [
            pair_maxima(
                q_HSd,
                k_KTd,
                block_M,
                block_tokens=b,
                scale=predictor.scale,
                window_tokens=predictor.window_tokens,
            )
            for q_HSd, k_KTd in zip(q_BHSd, k_BKTd, strict=True)
        ]
    )
    counts_BMN = counts_BNN[:, block_M]
    exact_BMN = sample.scores_BNN[:, block_M]
    losses_BMN = F.smooth_l1_loss(predicted_BMN / unit, exact_BMN / unit, reduction="none")
    return (losses_BMN * counts_BMN).sum() / counts_BMN.sum().clamp(min=1)


def _targets(blocks: Blocks, selection: SelectionConfig, index: int) -> list[Tensor | None]:
    """Of a text, all of whose tokens have a label: runs at PLACES that differ from sample to sample."""
    if selection.target_fraction == 0:
        return [None]
    return [
        target_blocks(
            torch.full_like(blocks.block_of_token_BT, index),
            blocks.block_of_token_BT >= 0,
            blocks,
            keep_fraction=selection.keep_fraction,
            target_fraction=selection.target_fraction,
            epoch=place,
        )
        for place in range(PLACES)
    ]


def _choice(
    scores_BN: Tensor, blocks: Blocks, selection: SelectionConfig, target_BN: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Blocks that nothing but their score decides about, and those of them that these scores keep; B x N bool each.

    Every token counts as one with a label, so that the scores alone decide.
    """
    is_real_BT = blocks.block_of_token_BT >= 0
    kept_BN = select(scores_BN, blocks, is_real_BT, keep_fraction=selection.keep_fraction, target_BN=target_BN).kept_BN
    is_first_BN, is_last_BN = indispensable(blocks, blocks.any_token(is_real_BT))
    is_forced_BN = is_first_BN | (is_last_BN if target_BN is None else target_BN)
    is_free_BN = (blocks.document_of_block_BN >= 0) & ~is_forced_BN
    return is_free_BN, kept_BN & is_free_BN


def _counted_pairs(blocks: Blocks, reach_blocks: int | None) -> Tensor:
    """Pairs that see each other, without each document's first key block; B x N x N bool."""
    return blocks.seen(reach_blocks) & ~blocks.is_first_of_document()[:, None, :]


def _mean_score(samples: Sequence[Sample], predictor: LayerPredictor) -> float:
    total, pairs = 0.0, 0
    for sample in samples:
        counts_BNN = _counted_pairs(sample.blocks, predictor.reach_blocks(sample.blocks))
        total += float(sample.scores_BNN[counts_BNN].double().sum())
        pairs += int(counts_BNN.sum())
    return max(total / max(pairs, 1), 1e-6)


def _schedule(step: int, steps: int) -> float:
    """Warm up linearly, then down along a cosine."""
    return min(step / WARM_UP_STEPS, 1.0) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))

"""What to learn from, decided before any score: the loss says what the rest of the selection is asked for.

A selection answers two questions. *Targets* are the blocks whose next tokens are learnt; *context* are the blocks that
help to predict them. A document keeps n blocks (selection.py), and `target_fraction` of them are targets:

    labels in few blocks (a chat's answers, questions at the end)   all of these blocks
    labels in more blocks than that (plain text)                    one run of consecutive labelled blocks

Neighbours predict each other, so a run loses less than scattered blocks. It starts at a place that the document's own
labels decide, and moves on by its length from epoch to epoch, round and round: every block is learnt from once before
one is learnt from twice. Nothing is drawn, so a resumed or recomputed step has the same targets.

Shapes   B batch, T tokens, N blocks
"""

from __future__ import annotations

import torch
from torch import Tensor

from jenga_core.elimination.blocks import Blocks

_MIXER = 0x9E3779B97F4A7C15 - 2**64  # odd, without a pattern in its bits; int64 products wrap


def wanted_blocks(blocks: Blocks, keep_fraction: float) -> Tensor:
    """`kept_blocks` (config.py) of each block's document, but never less than 2; int64 B x N."""
    size_BN = blocks.same_document().sum(dim=2)
    return (size_BN.double() * keep_fraction - 1e-9).ceil().long().clamp(min=2)


def target_blocks(
    targets_BT: Tensor,
    has_label_BT: Tensor,
    blocks: Blocks,
    *,
    keep_fraction: float,
    target_fraction: float,
    epoch: int,
) -> Tensor:
    """bool B x N, at least one block of each document that has a label; one of the n is left for the first block.

    Args:
        targets_BT: int64, what each token should predict; decides where a run starts.
        has_label_BT: bool, whether it counts.
        target_fraction: in (0, 1], of the n blocks that a document keeps.
        epoch: how often the data was seen before.
    """
    has_label_BN = blocks.any_token(has_label_BT)
    labelled_BNN = blocks.same_document() & has_label_BN[:, None, :]
    labelled_BN = labelled_BNN.sum(dim=2)
    wanted_BN = wanted_blocks(blocks, keep_fraction)
    run_BN = torch.minimum((wanted_BN * target_fraction).round().long(), wanted_BN - 1).clamp(min=1)
    place_BN = labelled_BNN.tril(-1).sum(dim=2)  # among the document's labelled blocks
    start_BN = (_fingerprint(targets_BT, blocks) + epoch * run_BN) % labelled_BN.clamp(min=1)
    return has_label_BN & ((place_BN - start_BN) % labelled_BN.clamp(min=1) < run_BN)


def _fingerprint(targets_BT: Tensor, blocks: Blocks) -> Tensor:
    """A number in [0, 2^31) for each block's document that depends on all of its targets; int64 B x N."""
    position_BT = blocks.position_in_document()
    mixed_BT = (targets_BT + 1 + position_BT * 0x10001) * _MIXER  # sums of int64 wrap, too: any order gives the same
    of_block_BN = torch.zeros_like(blocks.document_of_block_BN)
    is_real_BT = blocks.block_of_token_BT >= 0
    of_block_BN.scatter_add_(1, blocks.block_of_token_BT.clamp(min=0), ((mixed_BT >> 20) * _MIXER) * is_real_BT)
    return ((of_block_BN[:, None, :] * blocks.same_document()).sum(dim=2) >> 32) & 0x7FFFFFFF

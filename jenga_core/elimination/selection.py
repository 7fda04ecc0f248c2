"""Scores to a selection: the blocks that stay involved, and the indices of their tokens.

By share, n = ceil(keep_fraction x N) of the N blocks of each document are kept, at least 2, in this order:

    1. the first block: every later token leans on it (the attention sink); without it the model breaks
    2. the targets (targets.py); without any, the last block with a label
    3. context, best score first; without targets, blocks with a label come before those without: a kept set without
       labels would teach nothing

By threshold (the paper's way), the blocks that score at least the layer's threshold are kept, and those of 1 and 2.

Kept tokens stay in their order, so causal order holds, and they keep their original positions.

Shapes   B batch, T tokens, N blocks, G kept tokens of the sequence that keeps most
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jenga_core.config import kept_blocks
from jenga_core.elimination.blocks import Blocks
from jenga_core.elimination.targets import wanted_blocks


@dataclass(frozen=True)
class Selection:
    """The involved tokens of a batch; each sequence has its own."""

    kept_BN: Tensor
    """bool, the blocks that stay involved."""

    token_index_BG: Tensor
    """int64, ascending positions of the kept tokens; entries past a sequence's own count name tokens that are not kept,
    each its own."""

    is_kept_BG: Tensor
    """bool, False for those surplus entries, which always come last."""

    kept_fraction: Tensor
    """float32 scalar, kept tokens over real tokens, in the whole batch."""

    is_everyone: bool = False
    """Every token of every sequence is kept."""


def select(
    scores_BN: Tensor,
    blocks: Blocks,
    has_label_BT: Tensor,
    *,
    keep_fraction: float | None = None,
    threshold: float | None = None,
    target_BN: Tensor | None = None,
) -> Selection:
    """Choose the blocks and index their tokens.

    Args:
        scores_BN: float, higher is more informative. Ties go to the earlier block.
        has_label_BT: bool, whether a loss could be taken at the token.
        keep_fraction: in (0, 1]; or
        threshold: a score. Exactly one of the two.
        target_BN: bool, the blocks that are learnt from whatever they score; fewer than are kept.
    """
    has_label_BN = blocks.any_token(has_label_BT)
    is_first_BN, is_last_label_BN = indispensable(blocks, has_label_BN)
    if target_BN is None:
        rank_BN = torch.where(is_first_BN, 3, torch.where(is_last_label_BN, 2, has_label_BN.long()))
    else:
        rank_BN = torch.where(is_first_BN, 3, torch.where(target_BN, 2, 0))
    if keep_fraction is not None:
        kept_BN = _best(scores_BN, blocks, rank_BN, keep_fraction)
    else:
        assert threshold is not None
        kept_BN = ((scores_BN >= threshold) | (rank_BN >= 2)) & (blocks.document_of_block_BN >= 0)
    real_BT = blocks.block_of_token_BT >= 0
    kept_BT = kept_BN.gather(1, blocks.block_of_token_BT.clamp(min=0)) & real_BT
    counts_B = kept_BT.sum(dim=1)
    if keep_fraction is not None and blocks.is_plain:
        # A bound that is reached unless a kept block is short: no reason to wait for a GPU to count.
        longest = kept_blocks(blocks.num_blocks, keep_fraction) * blocks.block_tokens
        G = min(longest, kept_BT.shape[1])
        is_everyone = kept_BT.shape[1] == G and not blocks.has_padding
    else:
        least, G = torch.stack(counts_B.aminmax()).tolist()
        is_everyone = least == kept_BT.shape[1]
    index_BG = (~kept_BT).to(torch.int8).argsort(dim=1, stable=True)[:, :G]
    is_kept_BG = torch.arange(G, device=index_BG.device) < counts_B[:, None]
    fraction = counts_B.sum().float() / real_BT.sum().clamp(min=1)
    return Selection(kept_BN, index_BG, is_kept_BG, fraction, is_everyone)


def indispensable(blocks: Blocks, has_label_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The first block of each document, and its last block with a label; B x N bool each."""
    labelled_later_BNN = (blocks.same_document() & has_label_BN[:, None, :]).triu(1)
    return blocks.is_first_of_document(), has_label_BN & ~labelled_later_BNN.any(dim=2)


def _best(scores_BN: Tensor, blocks: Blocks, rank_BN: Tensor, keep_fraction: float) -> Tensor:
    document_BN = blocks.document_of_block_BN

    # Sort by document, then rank, then score: stable sorts, last key first.
    order_BN = scores_BN.argsort(dim=1, descending=True, stable=True)
    order_BN = order_BN.gather(1, rank_BN.gather(1, order_BN).argsort(dim=1, descending=True, stable=True))
    order_BN = order_BN.gather(1, document_BN.gather(1, order_BN).argsort(dim=1, stable=True))
    block_N = torch.arange(blocks.num_blocks, device=document_BN.device)
    place_BN = torch.empty_like(order_BN).scatter_(1, order_BN, block_N.expand_as(order_BN))
    blocks_before_BN = (document_BN[:, :, None] > document_BN[:, None, :]).sum(dim=2)
    return (place_BN - blocks_before_BN < wanted_blocks(blocks, keep_fraction)) & (document_BN >= 0)

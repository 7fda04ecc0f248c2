"""Tokens to blocks. Scores, selection and kernels all work on whole blocks of b consecutive tokens (paper: b = 64).

A block never crosses a document: the first token of every document starts one, so the last block of a document may be
short. Padding belongs to no block. With b = 4, two packed documents of 6 and 3 tokens and two padding tokens:

    token      0 1 2 3 4 5   6 7 8   9 10
    document   0 0 0 0 0 0   1 1 1   - -
    block      0 0 0 0 1 1   2 2 2   - -

Shapes   B batch, T tokens, N blocks of the sequence that has most
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jenga_core.errors import ConfigError


@dataclass(frozen=True)
class Blocks:
    """Where every token of a batch belongs."""

    block_of_token_BT: Tensor
    """int64, counted from 0 in each sequence; -1 for padding."""

    document_of_block_BN: Tensor
    """int64, counted from 0 in each sequence; -1 where a sequence has fewer than N blocks."""

    block_tokens: int
    """b."""

    length_B: Tensor
    """int64, real tokens of each sequence."""

    is_plain: bool
    """One document per sequence, padded on the right if at all: token t lies in block t // b."""

    has_padding: bool = True
    """Some token may be none."""

    @property
    def num_blocks(self) -> int:
        """N."""
        return self.document_of_block_BN.shape[1]

    def any_token(self, of_token_BT: Tensor) -> Tensor:
        """B x N bool: whether any token of the block has the property."""
        return self._count(of_token_BT) > 0

    def token_counts(self) -> Tensor:
        """B x N int64: tokens of the block; 0 where a sequence has fewer than N blocks."""
        return self._count(torch.ones_like(self.block_of_token_BT, dtype=torch.bool))

    def same_document(self) -> Tensor:
        """B x N x N bool: whether two blocks are of one document."""
        return self.document_of_block_BN[:, :, None] == self.document_of_block_BN[:, None, :]

    def is_first_of_document(self) -> Tensor:
        """B x N bool: whether the block is the first of its document."""
        is_first_BN = torch.ones_like(self.document_of_block_BN, dtype=torch.bool)
        is_first_BN[:, 1:] = self.document_of_block_BN[:, 1:] != self.document_of_block_BN[:, :-1]
        return is_first_BN

    def position_in_document(self) -> Tensor:
        """B x T int64: how many tokens of its document come before; of no meaning for padding."""
        token_T = torch.arange(self.block_of_token_BT.shape[1], device=self.block_of_token_BT.device)
        document_BT = self.document_of_block_BN.gather(1, self.block_of_token_BT.clamp(min=0))
        document_BT = document_BT.masked_fill(self.block_of_token_BT < 0, -1)
        starts_BT = torch.ones_like(document_BT, dtype=torch.bool)
        starts_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
        return token_T - torch.where(starts_BT, token_T, 0).cummax(1).values

    def seen(self, reach_blocks: int | None = None) -> Tensor:
        """B x N x N bool: whether query block m sees key block n: m >= n in one document, at most `reach_blocks`
        apart."""
        seen_BNN = (self.same_document() & (self.document_of_block_BN >= 0)[:, :, None]).tril()
        return seen_BNN if reach_blocks is None else seen_BNN.triu(-reach_blocks)

    def to(self, device: torch.device) -> Blocks:
        """The same on a device."""
        return replace(
            self,
            block_of_token_BT=self.block_of_token_BT.to(device),
            document_of_block_BN=self.document_of_block_BN.to(device),
            length_B=self.length_B.to(device),
        )

    def mean(self, of_token_BT: Tensor) -> Tensor:
        """B x N float32: the mean over the block's tokens; 0 where a sequence has fewer than N blocks."""
        sums_BN = torch.zeros(self.document_of_block_BN.shape, device=of_token_BT.device)
        is_real_BT = self.block_of_token_BT >= 0
        sums_BN.scatter_add_(1, self.block_of_token_BT.clamp(min=0), of_token_BT.float() * is_real_BT)
        return sums_BN / self.token_counts().clamp(min=1)

    def among(self, token_index_BG: Tensor, is_kept_BG: Tensor) -> Blocks:
        """The same blocks, renumbered, for the rows of kept tokens alone (ascending; surplus rows are padding)."""
        old_BG = self.block_of_token_BT.gather(1, token_index_BG)
        is_new_BG = torch.ones_like(is_kept_BG)
        is_new_BG[:, 1:] = old_BG[:, 1:] != old_BG[:, :-1]
        block_BG = torch.where(is_kept_BG, is_new_BG.cumsum(1) - 1, -1)
        document_BG = torch.where(is_kept_BG, self.document_of_block_BN.gather(1, old_BG.clamp(min=0)), -1)
        num_blocks = max(int(block_BG.max()) + 1, 1)
        document_BN = document_BG.new_full((block_BG.shape[0], num_blocks), -1)
        document_BN.scatter_reduce_(1, block_BG.clamp(min=0), document_BG, "amax")
        return Blocks(block_BG, document_BN, self.block_tokens, is_kept_BG.sum(dim=1), is_plain=False)

    def _count(self, of_token_BT: Tensor) -> Tensor:
        counts_BN = torch.zeros_like(self.document_of_block_BN)
        is_real_BT = self.block_of_token_BT >= 0
        return counts_BN.scatter_add_(1, self.block_of_token_BT.clamp(min=0), (of_token_BT & is_real_BT).long())


def split_into_blocks(
    batch: int,
    tokens: int,
    *,
    block_tokens: int,
    attention_mask_BT: Tensor | None = None,
    position_ids: Tensor | None = None,
    device: torch.device | None = None,
) -> Blocks:
    """Number the blocks of a batch.

    Args:
        block_tokens: b, tokens per block.
        attention_mask_BT: 0 marks padding, on either side. None: no padding.
        position_ids: B x T or 1 x T. Where a position does not follow the one before it, a new document starts (how
            transformers tells packed documents apart). None: one document per sequence.

    Raises:
        ConfigError: the mask has a gap between real tokens.
    """
    token_T = torch.arange(tokens, device=device)
    if attention_mask_BT is None and position_ids is None:  # known without asking a GPU
        block_BT, length_B = (token_T // block_tokens).repeat(batch, 1), token_T.new_full((batch,), tokens)
        document_BN = block_BT[:, ::block_tokens] * 0
        return Blocks(block_BT, document_BN, block_tokens, length_B, is_plain=True, has_padding=False)
    real_BT = token_T.new_ones(batch, tokens, dtype=torch.bool)
    if attention_mask_BT is not None:
        real_BT = attention_mask_BT.to(device=device, dtype=torch.bool)
    first_BT = real_BT & (real_BT.cumsum(1) == 1)
    if position_ids is not None:
        follows_BT = position_ids.to(device).expand(batch, tokens).diff(dim=1) == 1
        first_BT[:, 1:] |= real_BT[:, 1:] & ~follows_BT

    document_start_BT = torch.where(first_BT, token_T, 0).cummax(1).values
    starts_block_BT = real_BT & (first_BT | ((token_T - document_start_BT) % block_tokens == 0))
    block_BT = torch.where(real_BT, starts_block_BT.cumsum(1) - 1, -1)
    document_BT = torch.where(real_BT, first_BT.cumsum(1) - 1, -1)

    length_B = real_BT.sum(dim=1)
    plain_BT = torch.where(token_T < length_B[:, None], token_T // block_tokens, -1)
    is_plain = (block_BT == plain_BT).all() & (document_BT <= 0).all()
    runs_B = real_BT[:, 0].long() + (real_BT[:, 1:] & ~real_BT[:, :-1]).sum(dim=1)
    questions = (block_BT.max(), is_plain, ~real_BT.all(), runs_B.max())
    last_block, is_plain, has_padding, runs = torch.stack(questions).tolist()  # one wait for a GPU
    if runs > 1:
        raise ConfigError(
            "attention_mask has zeros between real tokens; mask at the ends of a sequence, and leave tokens out that "
            "must not be seen",
            param="attention_mask",
        )
    num_blocks = max(last_block + 1, 1)
    document_BN = document_BT.new_full((batch, num_blocks), -1)
    document_BN.scatter_reduce_(1, block_BT.clamp(min=0), document_BT, "amax")
    return Blocks(block_BT, document_BN, block_tokens, length_B, bool(is_plain), bool(has_padding))

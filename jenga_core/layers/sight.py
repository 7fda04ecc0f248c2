"""Which keys a row sees. One rule covers causal attention, sliding windows, packed documents and taken-out rows:

    row g sees the keys first_g .. last_g of the key array, and its own key stands at last_g

    all T tokens, window w          first = max(start of the document, t - w + 1)      last = t
    involved rows over all keys     the same, at their tokens t
    involved rows among themselves  the same, counted in rows
    within groups of n keys         first = max(first, start of the group), last as it was; and the sink: the first
                                    keys of the document, which attention rests on when it finds nothing

The rule goes by position and document, so it needs no T x T mask, and padding sees itself alone. A surplus row, which
fills a sequence up that keeps fewer tokens than another of its batch, has last = -1: it sees nothing and has no key.

Shapes   B batch, T tokens, G involved tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jenga_core.elimination.blocks import Blocks
from jenga_core.elimination.selection import Selection


@dataclass(frozen=True)
class Sink:
    """So many keys from the start of each row's document, as far as they lie before what the row sees."""

    first_BG: Tensor
    """int64, the key at which the row's document begins."""

    keys: int
    is_plain: bool
    """Every sequence is one document, whose keys begin at 0."""


@dataclass(frozen=True)
class Sight:
    """The keys that each row sees."""

    first_BG: Tensor
    """int64."""

    last_BG: Tensor
    """int64, ascending; -1 for surplus rows, which come last."""

    is_causal: bool
    """Row g sees the keys 0..g of as many keys, as far as it matters to rows that are kept: any library's causal
    attention will do."""

    reaches_start: bool = True
    """`first` is where the row's document begins; else a window or a group may begin later."""

    sink: Sink | None = None
    """What is seen beside first..last (layers/sink.py)."""

    @classmethod
    def of_all_tokens(cls, blocks: Blocks, window_tokens: int | None) -> Sight:
        """Of every token, over every token."""
        block_BT = blocks.block_of_token_BT
        token_T = torch.arange(block_BT.shape[1], device=block_BT.device)
        document_BT = torch.where(block_BT >= 0, blocks.document_of_block_BN.gather(1, block_BT.clamp(min=0)), -1)
        starts_BT = torch.ones_like(document_BT, dtype=torch.bool)
        starts_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
        first_BT = torch.where(starts_BT | (document_BT < 0), token_T, 0).cummax(dim=1).values
        if window_tokens is not None:
            first_BT = torch.maximum(first_BT, token_T - window_tokens + 1)
        reaches_all = window_tokens is None or window_tokens >= block_BT.shape[1]
        last_BT = token_T.expand_as(first_BT)
        return cls(first_BT, last_BT, is_causal=blocks.is_plain and reaches_all, reaches_start=reaches_all)

    def within_groups(self, keys: int, shift: int, sink_keys: int = 0) -> Sight:
        """Of the same rows, no farther back than the start of their group of so many keys; groups begin `shift` keys
        before a multiple of that. And the sink, where windows do not end before it: a layer that slides never saw it.
        """
        start_BG = torch.div(self.last_BG + shift, keys, rounding_mode="floor") * keys - shift
        sink = Sink(self.first_BG, sink_keys, self.is_causal) if sink_keys and self.reaches_start else None
        first_BG = torch.maximum(self.first_BG, start_BG)
        return Sight(first_BG, self.last_BG, is_causal=False, reaches_start=False, sink=sink)

    def over_all_keys(self, selection: Selection) -> Sight:
        """Of the involved rows, over the keys of all tokens."""
        index_BG = selection.token_index_BG
        last_BG = torch.where(selection.is_kept_BG, index_BG, -1)
        is_causal = self.is_causal and selection.is_everyone
        return Sight(self.first_BG.gather(1, index_BG), last_BG, is_causal, self.reaches_start)

    def among_themselves(self, selection: Selection) -> Sight:
        """Of the involved rows, over their own keys, counted in rows."""
        index_BG = selection.token_index_BG
        row_BG = torch.arange(index_BG.shape[1], device=index_BG.device).expand_as(index_BG)
        # Surplus entries name other tokens; past the last token they keep the search's order ascending.
        ascending_BG = torch.where(selection.is_kept_BG, index_BG, self.first_BG.shape[1]).contiguous()
        first_BG = torch.searchsorted(ascending_BG, self.first_BG.gather(1, index_BG).contiguous())
        last_BG = torch.where(selection.is_kept_BG, row_BG, -1)
        return Sight(first_BG, last_BG, self.is_causal, self.reaches_start)

"""Attention when only some tokens are involved: the masks, and the keys and values that forward-only tokens leave.

An *eliminated* token is no query, key or value: attention runs on the rows of the involved tokens alone, and its mask
is the dense mask's rows and columns at their positions. A *forward-only* token keeps its key and value, as constants:
the involved tokens attend to all T keys, of which only their own carry gradient.

Shapes   B batch, K key/value heads, T tokens, G involved tokens, D head size
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jenga_core.elimination.selection import Selection
from jenga_core.layers.rows import take_rows


def mask_among_involved(mask: Tensor | None, selection: Selection) -> Tensor | None:
    """The mask of involved queries over involved keys.

    None stays None: kept tokens are in causal order and surplus rows come after them, so plain causal attention is
    right. A 4-D mask (additive or bool) loses its other rows and columns; surplus keys are hidden.
    """
    if mask is None:
        return None
    if mask.dim() == 2:  # flash attention: 1 for tokens to attend to
        return take_rows(mask, selection.token_index_BG) * selection.is_kept_BG
    rows_B1GG = _columns(_rows(mask, selection.token_index_BG), selection.token_index_BG)
    surplus_B11G = ~selection.is_kept_BG[:, None, None, :]
    itself_GG = torch.eye(surplus_B11G.shape[-1], dtype=torch.bool, device=mask.device)
    hidden = surplus_B11G & ~itself_GG  # a surplus row may see itself: a row that sees nothing would be NaN
    if mask.dtype == torch.bool:
        return rows_B1GG & ~hidden
    return rows_B1GG.masked_fill(hidden, torch.finfo(mask.dtype).min)


def mask_over_all_keys(mask: Tensor | None, selection: Selection, tokens: int) -> Tensor:
    """The mask of involved queries over all T keys: causal by position where the dense model needed no mask."""
    if mask is not None:
        return _rows(mask, selection.token_index_BG)
    key_T = torch.arange(tokens, device=selection.token_index_BG.device)
    return (key_T <= selection.token_index_BG[:, :, None])[:, None]


def _rows(mask_B1TT: Tensor, index_BG: Tensor) -> Tensor:
    return take_rows(mask_B1TT.transpose(1, 2), index_BG).transpose(1, 2)


def _columns(mask_B1GT: Tensor, index_BG: Tensor) -> Tensor:
    B, G = index_BG.shape
    mask_B1GT = mask_B1GT.expand(B, -1, -1, -1)
    return mask_B1GT.gather(3, index_BG[:, None, None, :].expand(B, mask_B1GT.shape[1], G, G))


class KeysAndValues:
    """Keys and values of one pass over all tokens, layer by layer.

    It has the one method of a transformers cache that attention calls, `update`, in its two phases:
    while `involved` is None it records; afterwards it answers with the recorded K and V in which the rows of the
    involved tokens are replaced by the given ones, which carry gradient.
    """

    def __init__(self) -> None:
        self._recorded: dict[int, tuple[Tensor, Tensor]] = {}
        self.involved: Selection | None = None

    def update(self, k_BKxD: Tensor, v_BKxD: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Record all rows (x = T), or lay the involved rows (x = G) over the recorded ones."""
        if self.involved is None:
            self._recorded[layer] = (k_BKxD, v_BKxD)
            return k_BKxD, v_BKxD
        k_BKTD, v_BKTD = self._recorded[layer]
        return self._overlay(k_BKTD, k_BKxD), self._overlay(v_BKTD, v_BKxD)

    def _overlay(self, all_BKTD: Tensor, rows_BKGD: Tensor) -> Tensor:
        assert self.involved is not None
        kept = self.involved.is_kept_BG
        batch_BG = torch.arange(kept.shape[0], device=kept.device)[:, None].expand_as(kept)
        where = (batch_BG[kept], self.involved.token_index_BG[kept])
        return all_BKTD.transpose(1, 2).index_put(where, rows_BKGD.transpose(1, 2)[kept]).transpose(1, 2)

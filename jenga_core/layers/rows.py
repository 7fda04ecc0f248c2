"""Rows of the residual stream: taken out for the tokens that stay involved, and put back in place.

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor

from jenga_core.elimination.selection import Selection


def take_rows(x_BTx: Tensor, index_BG: Tensor) -> Tensor:
    """x[b, index[b, g]]: B x G x whatever follows T. A leading dimension of 1 serves every sequence."""
    batch = torch.arange(index_BG.shape[0], device=x_BTx.device)[:, None]
    return x_BTx[batch if x_BTx.shape[0] > 1 else torch.zeros_like(batch), index_BG]


def put_rows(x_BTE: Tensor, rows_BGE: Tensor, selection: Selection) -> Tensor:
    """A copy of x with the kept tokens' rows replaced; surplus rows are dropped. Differentiable in both."""
    batch_BG = torch.arange(x_BTE.shape[0], device=x_BTE.device)[:, None].expand_as(selection.token_index_BG)
    kept = selection.is_kept_BG
    return x_BTE.index_put((batch_BG[kept], selection.token_index_BG[kept]), rows_BGE[kept])

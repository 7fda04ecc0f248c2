"""Attention to the sink: the first keys of a document, which rows of later groups (sight.py) see beside their own.

Attention that finds nothing rests on a text's first tokens (attention sinks, Xiao et al. 2024). A row that cannot see
them attends to something else instead. The sink is attended to by itself, and merged by the softmaxes' sums:

    lse = log(exp(lse_group) + exp(lse_sink))      w = exp(lse_sink - lse)      o = (1 - w) o_group + w o_sink

In backward both parts take the merged o and lse, and what they give adds up.

Shapes   B batch, H query heads, K key/value heads, G rows and their keys, S keys of the sink, D head size; c a chunk
         of rows, g the query heads of a key head
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jenga_core.layers.sight import Sight, Sink

CHUNK_ROWS = 4096
"""Rows whose scores of the sink are there at once."""


def merge_sink(
    o_BHGD: Tensor,
    lse_BHG: Tensor,
    q_BHGD: Tensor,
    k_BKGD: Tensor,
    v_BKGD: Tensor,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None,
) -> None:
    """Attention of rows to first..last, o and lse, becomes that to the sink, too. Row g's key stands at g."""
    K = k_BKGD.shape[1]
    for batch, rows, keys in _parts(sight):
        s, _ = _scores(q_BHGD[batch, :, rows], k_BKGD[batch, :, keys], sight, (batch, rows, keys), scale, softcap)
        lse_sink = s.logsumexp(dim=-1)  # -inf where nothing of it is before the group
        p = (s - lse_sink.clamp(min=torch.finfo(s.dtype).min)[..., None]).exp()
        o_sink = p.to(v_BKGD.dtype) @ v_BKGD[batch, :, None, keys]
        o, lse = (x[batch, :, rows].unflatten(1, (K, -1)) for x in (o_BHGD, lse_BHG))
        share = torch.sigmoid(lse_sink - lse)
        merged = torch.lerp(o.to(s.dtype), o_sink.to(s.dtype), share[..., None])
        o_BHGD[batch, :, rows] = merged.flatten(1, 2).to(o.dtype)
        lse_BHG[batch, :, rows] = (lse + torch.nn.functional.softplus(lse_sink - lse)).flatten(1, 2)


def add_sink_gradients(
    gradients: tuple[Tensor, Tensor, Tensor],
    do_BHGD: Tensor,
    q_BHGD: Tensor,
    k_BKGD: Tensor,
    v_BKGD: Tensor,
    o_BHGD: Tensor,
    lse_BHG: Tensor,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None,
) -> None:
    """dQ, dK and dV of first..last become those of the sink, too; o and lse are the merged ones."""
    dq_BHGD, dk_BKGD, dv_BKGD = gradients
    K = k_BKGD.shape[1]
    for batch, rows, keys in _parts(sight):
        q, do, o, lse = (x[batch, :, rows].unflatten(1, (K, -1)) for x in (q_BHGD, do_BHGD, o_BHGD, lse_BHG))
        k, v = k_BKGD[batch, :, None, keys], v_BKGD[batch, :, None, keys]
        place = batch, rows, keys
        s, through_cap = _scores(q_BHGD[batch, :, rows], k_BKGD[batch, :, keys], sight, place, scale, softcap)
        p = (s - lse[..., None]).exp()
        delta = (do.to(s.dtype) * o.to(s.dtype)).sum(dim=-1, keepdim=True)
        ds = p * ((do @ v.transpose(-1, -2)).to(s.dtype) - delta) * through_cap * scale
        dq_BHGD[batch, :, rows] += (ds.to(k.dtype) @ k).flatten(1, 2)
        dk_BKGD[batch, :, keys] += (ds.to(q.dtype).transpose(-1, -2) @ q).sum(dim=2)
        dv_BKGD[batch, :, keys] += (p.to(do.dtype).transpose(-1, -2) @ do).sum(dim=2)


_Place = tuple[slice, slice, slice]
"""Sequences of the batch, their rows, and the keys of these rows' sink."""


def _parts(sight: Sight) -> Iterator[_Place]:
    """Chunks of rows with one sink."""
    sink = sight.sink
    assert sink is not None
    for batch, first, end in _documents(sink):
        for begin in range(first, end, CHUNK_ROWS):
            yield batch, slice(begin, min(begin + CHUNK_ROWS, end)), slice(first, min(first + sink.keys, end))


def _documents(sink: Sink) -> Iterator[tuple[slice, int, int]]:
    """Sequences, and the first row and the end of a document in them; one of a single row has no sink before it."""
    G = sink.first_BG.shape[1]
    if sink.is_plain:
        yield slice(None), 0, G
        return
    for index, first_G in enumerate(sink.first_BG.tolist()):
        borders = [row for row in range(G) if row == 0 or first_G[row] != first_G[row - 1]]
        for first, end in zip(borders, [*borders[1:], G], strict=True):
            if end - first > 1:
                yield slice(index, index + 1), first, end


def _scores(
    q_BHcD: Tensor, k_BKSD: Tensor, sight: Sight, place: _Place, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | float]:
    """B x K x g x c x S in the precision of sums, -inf for keys that a row sees without; the derivative of the cap."""
    batch, rows, keys = place
    q_BKgcD = q_BHcD.unflatten(1, (k_BKSD.shape[1], -1))
    precise = torch.promote_types(q_BHcD.dtype, torch.float32)
    s = (q_BKgcD @ k_BKSD[:, :, None].transpose(-1, -2)).to(precise) * scale
    through_cap: Tensor | float = 1.0
    if softcap is not None:
        capped = (s / softcap).tanh()
        s, through_cap = capped * softcap, 1 - capped**2
    key_S = torch.arange(keys.start, keys.stop, device=s.device)
    before_Bc = torch.where(sight.last_BG[batch, rows] >= 0, sight.first_BG[batch, rows], 0)  # surplus rows see nothing
    return s.masked_fill((key_S >= before_Bc[..., None])[:, None, None], -torch.inf), through_cap

"""The twin of attention for involved rows, against plain autograd over the whole sequence, in float64."""

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor


def by_autograd(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, do: Tensor, scale: float, softcap: float | None
) -> dict[str, Tensor]:
    """Only the rows' own keys and values carry gradient: the others are constants."""
    group = q.shape[1] // k.shape[1]
    own = last.clamp(min=0)[:, None, :, None]
    q = q.clone().requires_grad_()
    k_rows, v_rows = (x.gather(2, own.expand(-1, x.shape[1], -1, x.shape[3])).requires_grad_() for x in (k, v))
    batch, row = (last >= 0).nonzero(as_tuple=True)
    k_all, v_all = (
        x.detach().transpose(1, 2).index_put((batch, last[batch, row]), rows.transpose(1, 2)[batch, row])
        for x, rows in ((k, k_rows), (v, v_rows))
    )
    k_all, v_all = (x.transpose(1, 2).repeat_interleave(group, dim=1) for x in (k_all, v_all))
    s = scale * q @ k_all.transpose(2, 3)
    if softcap is not None:
        s = softcap * (s / softcap).tanh()
    key = torch.arange(k.shape[2])
    seen = ((key >= first[..., None]) & (key <= last[..., None]))[:, None]
    o = s.masked_fill(~seen, -1e9).softmax(dim=3) @ v_all * (last >= 0)[:, None, :, None]
    o.backward(do)
    assert q.grad is not None and k_rows.grad is not None and v_rows.grad is not None
    return {"o": o.detach(), "dq": q.grad, "dk": k_rows.grad, "dv": v_rows.grad}


def rows_of(tokens: int, *, window: int | None, document: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two sequences that keep different tokens; the second one has surplus rows."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(2, tokens, generator=generator) < torch.tensor([[0.6], [0.3]])
    kept[:, 0] = True
    G = int(kept.sum(1).max())
    last = torch.full((2, G), -1)
    for b in range(2):
        positions = kept[b].nonzero().flatten()
        last[b, : len(positions)] = positions
    first = torch.where(last >= document, document, 0)
    if window is not None:
        first = torch.maximum(first, last - window + 1)
    return first.clamp(min=0), last


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize(("heads", "key_heads", "tokens"), [(4, 4, 16), (4, 2, 23), (3, 1, 40)])
def test_twin_equals_autograd(
    heads: int, key_heads: int, tokens: int, window: int | None, softcap: float | None
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    first, last = rows_of(tokens, window=window, document=tokens // 3, seed=heads)
    B, G = last.shape
    q, do = (torch.randn(B, heads, G, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(B, key_heads, tokens, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    options = {"scale": 0.4, "softcap": softcap, "chunk_rows": 5}
    o, lse = reference.involved_attention(q, k, v, first, last, **options)
    dq, dk, dv = reference.involved_attention_backward(do, q, k, v, o, lse, first, last, **options)
    truth = by_autograd(q, k, v, first, last, do, 0.4, softcap)
    assert (last < 0).any()
    for name, ours in {"o": o, "dq": dq, "dk": dk, "dv": dv}.items():
        torch.testing.assert_close(
            ours, truth[name], rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )

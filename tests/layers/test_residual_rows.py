"""ResidualRows against indexing in plain PyTorch, alone and layer after layer, with and without memory of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jenga_core.elimination.selection import Selection
from jenga_core.layers.residual_rows import ResidualRows
from jenga_core.layers.rows import put_rows, take_rows
from tests.support.assertions import assert_bit_identical

B, T, E = 2, 7, 3
WEIGHTS = [torch.randn(E, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2, 3)]
SETS = [([0, 2, 5], [1, 3]), ([1, 2], [0]), ([0, 1, 2, 3, 4, 5, 6], [6])]


def selection(first: list[int], second: list[int]) -> Selection:
    """Of two sequences; the shorter has surplus entries, which name tokens that are not kept."""
    G = max(len(first), len(second))
    index, kept = torch.zeros(B, G, dtype=torch.long), torch.zeros(B, G, dtype=torch.bool)
    for row, tokens in enumerate((first, second)):
        others = [token for token in range(T) if token not in tokens]
        index[row] = torch.tensor(tokens + others[: G - len(tokens)])
        kept[row, : len(tokens)] = True
    return Selection(torch.ones(B, 1, dtype=torch.bool), index, kept, torch.tensor(1.0))


def layer(rows: Tensor, weight: Tensor, chosen: Selection) -> Tensor:
    """Rows see each other, as in attention; surplus rows are hidden."""
    seen = (rows * chosen.is_kept_BG[..., None]).cumsum(dim=1)
    return rows + torch.tanh(seen @ weight)


def ours(x: Tensor, *, in_place: bool) -> Tensor:
    x = x * 1.5
    for tokens, weight in zip(SETS, WEIGHTS, strict=True):
        chosen = selection(*tokens)
        rows = ResidualRows(x, chosen, in_place=in_place)
        x = rows.put_back(layer(rows.take(), weight, chosen))
    return x


def plain(x: Tensor) -> Tensor:
    x = x * 1.5
    for tokens, weight in zip(SETS, WEIGHTS, strict=True):
        chosen = selection(*tokens)
        x = indexed(x, layer(take_rows(x, chosen.token_index_BG), weight, chosen), chosen)
    return x


def indexed(x: Tensor, rows: Tensor, chosen: Selection) -> Tensor:
    """put_rows in one line of PyTorch."""
    kept = chosen.is_kept_BG
    return x.index_put((torch.arange(B)[:, None].expand_as(kept)[kept], chosen.token_index_BG[kept]), rows[kept])


@pytest.mark.parametrize("tokens", SETS, ids=str)
def test_put_rows_is_indexing_and_keeps_no_rows_for_backward(tokens: tuple[list[int], list[int]]) -> None:
    chosen, x = selection(*tokens), stream()
    rows = torch.randn(B, chosen.token_index_BG.shape[1], E, dtype=torch.float64, requires_grad=True)
    assert_bit_identical("rows", put_rows(x, rows, chosen), indexed(x, rows, chosen))
    assert torch.autograd.gradcheck(lambda x, rows: put_rows(x, rows, chosen), (x, rows))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        put_rows(x, rows, chosen)
    assert not any(saved.is_floating_point() for saved in kept)
    targets = torch.arange(B * T).view(B, T)
    ours = put_rows(targets, take_rows(targets, chosen.token_index_BG) + 100, chosen)
    assert_bit_identical("targets", ours, indexed(targets, take_rows(targets, chosen.token_index_BG) + 100, chosen))


def stream() -> Tensor:
    return torch.randn(B, T, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "one reader": lambda y: (y.square() * torch.arange(B * T * E).view(B, T, E)).sum(),
    "expanded gradient": lambda y: y.sum(),
    "gradient shared with another": lambda y: (y + y.detach().requires_grad_()).square().sum(),
    "two readers": lambda y: y.sin().sum() + y.square().sum(),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("reader", LOSSES)
def test_values_and_gradients(reader: str, in_place: bool) -> None:
    x = stream()
    y, expected = ours(x, in_place=in_place), plain(x)
    assert_bit_identical("residual stream", y.detach(), expected.detach())
    (dx,), (truth,) = (torch.autograd.grad(LOSSES[reader](each), x) for each in (y, expected))
    torch.testing.assert_close(dx, truth)


@pytest.mark.parametrize("in_place", [False, True])
def test_gradcheck_in_float64(in_place: bool) -> None:
    assert torch.autograd.gradcheck(lambda x: ours(x, in_place=in_place), (stream(),))


def test_a_gradient_that_another_shares_is_not_overwritten() -> None:
    x, other = stream(), stream()
    older = other * 2.0  # its backward runs after the rows' and must find the gradient that it was given
    y = ours(x, in_place=True) + older
    y.square().sum().backward()
    expected_x, expected_other = stream(), stream()
    (plain(expected_x) + expected_other * 2.0).square().sum().backward()
    torch.testing.assert_close(x.grad, expected_x.grad)
    torch.testing.assert_close(other.grad, expected_other.grad)


def test_in_place_is_in_place_where_it_may_be() -> None:
    chosen = selection(*SETS[0])

    def round_trip(x: Tensor, in_place: bool = True) -> Tensor:
        rows = ResidualRows(x, chosen, in_place=in_place)
        return rows.put_back(rows.take() * 2)

    own = stream() * 1
    assert round_trip(own) is own
    for x in (stream(), (stream() * 1).transpose(0, 1).contiguous().transpose(0, 1), (stream() * 1).view(B, T, E)):
        before = x.detach().clone()
        y = round_trip(x)  # a leaf, one whose rows are not neighbours, a view
        assert_bit_identical("x", x.detach(), before)
        assert not torch.equal(y, x)
    kept = stream() * 1
    assert round_trip(kept, in_place=False) is not kept


def test_a_stream_without_gradient() -> None:
    """The first layer's, whose adapters alone are trained."""
    chosen, weight = selection(*SETS[0]), WEIGHTS[0].clone().requires_grad_()
    rows = ResidualRows(stream().detach(), chosen, in_place=True)
    y = rows.put_back(layer(rows.take(), weight, chosen))
    (dw,) = torch.autograd.grad(y.square().sum(), weight)
    x = stream().detach()
    expected = indexed(x, layer(take_rows(x, chosen.token_index_BG), weight, chosen), chosen)
    torch.testing.assert_close(dw, torch.autograd.grad(expected.square().sum(), weight)[0])


def test_rows_without_gradient_are_refused() -> None:
    rows = ResidualRows(stream(), selection(*SETS[0]), in_place=False)
    with pytest.raises(ValueError, match="computed from those that were taken"):
        rows.put_back(rows.take().detach())
    with torch.no_grad():
        rows.put_back(rows.take())

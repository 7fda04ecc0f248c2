"""The twins of the kernels that move rows, against autograd and loops over rows."""

from __future__ import annotations

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor

INDEX = torch.tensor([4, 0, -1, 2])
EPSILON = 1e-5


def stream() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_of_rows_and_its_gradient(offset: float) -> None:
    x, weight, d_y = stream().requires_grad_(), torch.linspace(-1, 2, 5, dtype=torch.float64), rows()
    real = INDEX >= 0
    y, rstd = reference.rms_norm(x.detach(), weight, epsilon=EPSILON, offset=offset, index_G=INDEX)
    expected = torch.nn.functional.rms_norm(x[INDEX[real]], (5,), weight + offset, EPSILON)
    torch.testing.assert_close(y[real], expected.detach())
    assert not y[~real].any()
    torch.testing.assert_close(rstd[real], (x.detach()[INDEX[real]].square().mean(1) + EPSILON) ** -0.5)

    (truth,) = torch.autograd.grad(expected, x, d_y[real])
    asked = {"offset": offset, "index_G": INDEX}
    d_rows = reference.rms_norm_backward(d_y, x.detach(), weight, rstd, **asked)
    torch.testing.assert_close(d_rows[real], truth[INDEX[real]])
    assert not d_rows[~real].any()
    into = stream().flip(0)
    expected_sum = into + truth
    assert reference.rms_norm_backward(d_y, x.detach(), weight, rstd, into_RE=into, **asked) is into
    torch.testing.assert_close(into, expected_sum)


def test_moving_rows() -> None:
    x, given = stream(), rows()
    added, put = x.clone(), x.clone()
    assert reference.add_rows(added, given, INDEX) is added
    assert reference.put_rows(put, given, INDEX) is put
    taken = reference.take_rows(x, INDEX)
    for g, r in enumerate(INDEX.tolist()):
        if r < 0:
            assert not taken[g].any()
            continue
        assert torch.equal(added[r], x[r] + given[g])
        assert torch.equal(put[r], given[g])
        assert torch.equal(taken[g], x[r])
    others = [1, 3, 5]
    assert torch.equal(added[others], x[others])
    assert torch.equal(put[others], x[others])

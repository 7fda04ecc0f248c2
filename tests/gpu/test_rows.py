"""rms_norm and its backward, add_rows, put_rows, take_rows: the kernels against their twins, on random inputs.

Compiled on a CUDA device, every dtype; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU, small sizes.
"""

from __future__ import annotations

import os

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor

from jenga_core.layers.rms_norm import rms_norm as layer
from tests.support.assertions import assert_within_budget

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

# R rows, G selected rows, E
SMALL = [(1, 1, 1), (9, 4, 24), (40, 17, 128), (6, 6, 3000)]
LARGE = [(5000, 2001, 4096), (3000, 1000, 896), (20000, 9999, 128), (8, 3, 20000)]
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
EPSILON = 1e-5


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x with rows further apart than they are wide, a weight, an index with a surplus row at its end, and G rows."""
    R, G, E = shape
    generator = torch.Generator().manual_seed(E)
    x = 3 * torch.randn(R, E + 8, generator=generator)
    index = torch.randperm(R, generator=generator)[:G]
    index[-1] = -1
    rows = torch.randn(G, E, generator=generator)
    weight = 1 + torch.randn(E, generator=generator) / 4
    return x.to(DEVICE, dtype)[:, :E], weight.to(DEVICE, dtype), index.to(DEVICE), rows.to(DEVICE, dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_equals_twin(shape: tuple[int, int, int], dtype: torch.dtype, indexed: bool, offset: float) -> None:
    from jenga_kernels import rows as kernels

    x, weight, index, d_y = inputs(shape, dtype)
    index_or_none = index if indexed else None
    d_y = d_y if indexed else torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype)
    asked = {"offset": offset, "index_G": index_or_none}
    y, rstd = kernels.rms_norm(x, weight, epsilon=EPSILON, **asked)
    plain, _ = reference.rms_norm(x, weight, epsilon=EPSILON, **asked)
    truth, true_rstd = reference.rms_norm(x.double(), weight.double(), epsilon=EPSILON, **asked)
    assert y.dtype == dtype
    assert rstd.dtype == torch.float32
    if indexed:
        assert not y[-1].any()
    if truth.any():
        assert_within_budget("rms_norm", ours=y, plain=plain, truth=truth)
    assert_within_budget("rms_norm", ours=rstd, truth=true_rstd)

    d_x = kernels.rms_norm_backward(d_y, x, weight, rstd, **asked)
    plain = reference.rms_norm_backward(d_y, x, weight, rstd, **asked)
    truth = reference.rms_norm_backward(d_y.double(), x.double(), weight.double(), true_rstd, **asked)
    assert d_x.shape == d_y.shape
    if shape != (1, 1, 1):  # a single entry is normed to its sign, which has no slope
        assert_within_budget("rms_norm", ours=d_x, plain=plain, truth=truth)

    into = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)
    ours, plain, truth = into.clone(), into.clone(), into.double()
    assert kernels.rms_norm_backward(d_y, x, weight, rstd, into_RE=ours, **asked) is ours
    reference.rms_norm_backward(d_y, x, weight, rstd, into_RE=plain, **asked)
    reference.rms_norm_backward(d_y.double(), x.double(), weight.double(), true_rstd, into_RE=truth, **asked)
    assert_within_budget("rms_norm", ours=ours, plain=plain, truth=truth)
    if indexed:
        untouched = torch.ones(shape[0], dtype=torch.bool, device=DEVICE)
        untouched[index[:-1]] = False
        assert torch.equal(ours[untouched], into[untouched])


@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rows_equals_twin(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    from jenga_kernels.rows import add_rows

    x, _, index, rows = inputs(shape, dtype)
    plain, truth, before = x.clone(), x.double(), x.clone()
    assert add_rows(x, rows, index) is x
    reference.add_rows(plain, rows, index)
    reference.add_rows(truth, rows.double(), index)
    assert torch.equal(x, plain)
    assert_within_budget("rms_norm", ours=x, plain=plain, truth=truth)
    assert shape[1] == 1 or not torch.equal(x, before)


@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_taking_and_putting_rows_equals_the_twins(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    from jenga_kernels.rows import put_rows, take_rows

    x, _, index, rows = inputs(shape, dtype)
    assert torch.equal(take_rows(x, index), reference.take_rows(x, index))
    scale = torch.tensor(1 / 8191, device=DEVICE)
    assert torch.equal(take_rows(x, index, scale=scale), reference.take_rows(x, index, scale=scale))
    expected = reference.put_rows(x.clone(), rows, index)
    assert put_rows(x, rows, index) is x
    assert torch.equal(x, expected)
    assert torch.equal(take_rows(x, index)[:-1], rows[:-1])


def test_bad_input() -> None:
    from jenga_kernels.rows import LARGEST_WIDTH, add_rows, rms_norm, rms_norm_backward, take_rows

    x, weight, index, rows = inputs((9, 4, 24), torch.float32)
    assert rms_norm(x, weight, epsilon=EPSILON, index_G=index[:0])[0].shape == (0, 24)
    assert torch.equal(add_rows(x.clone(), rows[:0], index[:0]), x)
    with pytest.raises(ValueError, match="bf16, fp16 or fp32"):
        rms_norm(x.double(), weight, epsilon=EPSILON)
    with pytest.raises(ValueError, match="at most"):
        rms_norm(torch.ones(1, LARGEST_WIDTH + 1, device=DEVICE), weight, epsilon=EPSILON)
    with pytest.raises(ValueError, match="neighbours"):
        rms_norm(torch.ones(24, 9, device=DEVICE).T, weight, epsilon=EPSILON)
    with pytest.raises(ValueError, match="24 entries"):
        rms_norm(x, weight[1:], epsilon=EPSILON)
    with pytest.raises(ValueError, match="int64"):
        rms_norm(x, weight, epsilon=EPSILON, index_G=index.int())
    with pytest.raises(ValueError, match="scale must be one float32"):
        take_rows(x, index, scale=torch.ones(2, device=DEVICE))
    with pytest.raises(ValueError, match="rows must be 4 x 24"):
        add_rows(x, rows[1:], index)
    with pytest.raises(ValueError, match="d_y must be 4 x 24"):
        rms_norm_backward(rows[1:], x, weight, torch.ones(4, device=DEVICE), index_G=index)
    with pytest.raises(ValueError, match="into must be like x"):
        rms_norm_backward(rows, x, weight, torch.ones(4, device=DEVICE), index_G=index, into_RE=rows)


@pytest.mark.skipif(INTERPRETED, reason="the norm uses the kernels on CUDA devices only")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_on_the_device(dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, 8, 128, device="cuda").to(dtype).transpose(1, 2).requires_grad_()
    weight = torch.randn(128, device="cuda").to(dtype)
    d_y = torch.randn(3, 8, 50, 128, device="cuda").to(dtype)
    results = []
    for name, precise in (("ours", False), ("plain", False), ("plain", True)):
        x_, weight_ = (t.detach().double() if precise else t.detach().clone() for t in (x, weight))
        x_.requires_grad_()
        if name == "ours":
            y = layer(x_, weight_, epsilon=EPSILON)
        else:
            y = torch.nn.functional.rms_norm(x_, (128,), weight_, EPSILON)
        results.append((y.detach(), *torch.autograd.grad(y, x_, d_y.to(y.dtype))))
    for ours, plain, truth in zip(*results, strict=True):
        assert_within_budget("rms_norm", ours=ours, plain=plain, truth=truth)

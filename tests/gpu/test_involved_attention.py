"""involved_attention, forward and backward: the kernels against their twins, on fresh random inputs of odd shapes.

Compiled on a CUDA device, every dtype; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU, small sizes and float32,
because the interpreter's bfloat16 products are wrong.
"""

from __future__ import annotations

import os

import pytest
import torch
from jenga_kernels import reference

from tests.kernels.test_involved_attention import rows_of
from tests.support.assertions import assert_within_budget

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

# H, K, T, D
SMALL = [(4, 2, 120, 16), (3, 1, 77, 24), (2, 2, 160, 32), (2, 1, 33, 16)]
LARGE = [(32, 8, 2048, 128), (9, 3, 1111, 64), (4, 4, 1000, 80), (4, 2, 777, 256), (8, 2, 1536, 96), (2, 1, 300, 32)]


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, None), (None, 5.0), (2, None)])
@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_equal_twins(
    shape: tuple[int, int, int, int], dtype: torch.dtype, window: int | None, softcap: float | None
) -> None:
    from jenga_kernels.involved_attention import involved_attention
    from jenga_kernels.involved_attention_backward import involved_attention_backward

    H, K, T, D = shape
    first, last = (x.to(DEVICE) for x in rows_of(T, window=window, document=T // 3, seed=T))
    B, G = last.shape
    generator = torch.Generator().manual_seed(T + D)

    def strided(heads: int, length: int) -> torch.Tensor:  # as attention has it
        return torch.randn(B, length, heads, D, generator=generator).to(DEVICE, dtype).transpose(1, 2)

    q, do, k, v = strided(H, G), strided(H, G), strided(K, T), strided(K, T)
    options = {"scale": D**-0.5, "softcap": softcap}

    o, lse = involved_attention(q, k, v, first, last, **options)
    gradients = involved_attention_backward(do, q, k, v, o, lse, first, last, **options)
    ours = dict(zip(("o", "dq", "dk", "dv"), (o, *gradients), strict=True))

    def of_twin(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        do, q, k, v = tensors
        o, lse = reference.involved_attention(q, k, v, first, last, **options)
        gradients = reference.involved_attention_backward(do, q, k, v, o, lse, first, last, **options)
        return dict(zip(("o", "dq", "dk", "dv"), (o, *gradients), strict=True))

    plain, truth = of_twin(do, q, k, v), of_twin(*(x.double() for x in (do, q, k, v)))
    for name, value in ours.items():
        assert value.shape == truth[name].shape
        assert_within_budget("involved_attention", ours=value, plain=plain[name], truth=truth[name])
    surplus = last < 0
    assert bool((ours["o"].transpose(1, 2)[surplus] == 0).all())
    assert bool((ours["dk"].transpose(1, 2)[surplus] == 0).all())
    assert bool(lse.transpose(1, 2)[surplus].isinf().all())


def test_what_the_kernels_do_not_take() -> None:
    from jenga_kernels.involved_attention import involved_attention

    q = torch.randn(1, 2, 8, 16, device=DEVICE)
    row = torch.arange(8, device=DEVICE)[None]
    with pytest.raises(ValueError, match=r"torch\.float64 queries"):
        involved_attention(q.double(), q.double(), q.double(), row, row, scale=1.0)
    with pytest.raises(ValueError, match="want keys and values"):
        involved_attention(q, q[:, :, :, :8], q[:, :, :, :8], row, row, scale=1.0)
    with pytest.raises(ValueError, match="first and last must be 1 x 8"):
        involved_attention(q, q, q, row[:, :4], row[:, :4], scale=1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        involved_attention(q, q, q, row, row, scale=0.0)


def test_no_rows() -> None:
    from jenga_kernels.involved_attention import involved_attention
    from jenga_kernels.involved_attention_backward import involved_attention_backward

    q, k = torch.randn(1, 2, 0, 16, device=DEVICE), torch.randn(1, 2, 8, 16, device=DEVICE)
    row = torch.zeros(1, 0, dtype=torch.long, device=DEVICE)
    o, lse = involved_attention(q, k, k, row, row, scale=1.0)
    dq, dk, dv = involved_attention_backward(q, q, k, k, o, lse, row, row, scale=1.0)
    assert o.shape == dq.shape == dk.shape == dv.shape == q.shape

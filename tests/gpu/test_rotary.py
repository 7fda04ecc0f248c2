"""rotary: the kernel against its twin, on fresh random inputs of odd shapes.

Compiled on a CUDA device, every dtype; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU, small sizes.
"""

from __future__ import annotations

import os

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor

from tests.support.assertions import assert_within_budget

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

# B, H, T, D
SMALL = [(1, 1, 1, 2), (2, 3, 7, 16), (1, 5, 4, 80)]
LARGE = [(1, 32, 2048, 128), (2, 9, 1111, 64), (1, 4, 777, 256), (3, 40, 100, 96)]
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, D = shape
    generator = torch.Generator().manual_seed(T)
    x = torch.randn(B, T, H, D, generator=generator).to(DEVICE, dtype).transpose(1, 2)
    angles = 7 * torch.randn(batch, T, D, generator=generator)  # no two alike
    return x, angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["as attention has it", "contiguous", "entries apart"])
@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_equals_twin(
    shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str, transposed: bool
) -> None:
    from jenga_kernels.rotary import rotary

    x, cos, sin = inputs(shape, dtype, batch=1 if layout == "contiguous" else shape[0])
    if layout == "contiguous":
        x = x.contiguous()
    elif layout == "entries apart":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    ours = rotary(x, cos, sin, transposed=transposed)
    plain = reference.rotary(x, cos, sin, transposed=transposed)
    truth = reference.rotary(x.double(), cos.double(), sin.double(), transposed=transposed)
    assert ours.stride() == plain.stride()
    assert_within_budget("rotary", ours=ours, plain=plain, truth=truth)


def test_bad_input() -> None:
    from jenga_kernels.rotary import rotary

    x, cos, sin = inputs((2, 3, 7, 16), torch.float32, 2)
    assert rotary(x[:, :, :0], cos[:, :0], sin[:, :0]).shape == (2, 3, 0, 16)
    with pytest.raises(ValueError, match="head size 15"):
        rotary(x[..., :15], cos[..., :15], sin[..., :15])
    with pytest.raises(ValueError, match=r"torch\.float64 is not supported"):
        rotary(x.double(), cos, sin)
    with pytest.raises(ValueError, match="angles must be 1 or 2 x 7 x 16"):
        rotary(x, cos[:, 1:], sin[:, 1:])

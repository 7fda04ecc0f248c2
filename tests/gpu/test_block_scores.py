"""block_scores: the kernel against its twin, on fresh random inputs of odd shapes.

Compiled on a CUDA device, every dtype; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU, small sizes and float32,
because the interpreter's bfloat16 products are wrong.
"""

from __future__ import annotations

import os

import pytest
import torch
from jenga_kernels import reference

from jenga_core.elimination.blocks import split_into_blocks
from tests.support.assertions import assert_within_budget

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

# B, H, K, T, D, b
SMALL = [
    (2, 4, 2, 200, 16, 16),
    (1, 3, 1, 129, 24, 32),
    (1, 2, 2, 256, 32, 64),
    (2, 2, 1, 90, 16, 48),
    (1, 1, 1, 7, 16, 64),
]
LARGE = [
    (1, 32, 8, 2048, 128, 64),
    (2, 9, 3, 1111, 64, 64),
    (1, 4, 4, 1000, 80, 128),
    (1, 4, 2, 777, 256, 64),
    (1, 8, 2, 1536, 96, 512),
    (3, 2, 1, 300, 32, 16),
]


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")


@pytest.mark.parametrize("window", [None, 1, 150])
@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16])
def test_kernel_equals_twin(shape: tuple[int, ...], dtype: torch.dtype, window: int | None) -> None:
    from jenga_kernels.block_scores import block_scores

    B, H, K, T, D, b = shape
    generator = torch.Generator().manual_seed(T)
    q = torch.randn(B, T, H, D, generator=generator).to(DEVICE, dtype).transpose(1, 2)  # strided, as attention has it
    k = torch.randn(B, T, K, D, generator=generator).to(DEVICE, dtype).transpose(1, 2)
    lengths = [T - 13 * row for row in range(B)]
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).to(DEVICE)
    blocks = split_into_blocks(B, T, block_tokens=b, attention_mask_BT=mask, device=mask.device)
    assert blocks.is_plain
    asked = {"scale": D**-0.5, "window_tokens": window}
    ours = block_scores(q, k, blocks.length_B, block_tokens=b, **asked)
    layout = (blocks.block_of_token_BT, blocks.document_of_block_BN)
    plain = reference.block_scores(q, k, *layout, **asked)
    truth = reference.block_scores(q.double(), k.double(), *layout, **asked)
    assert ours.shape == plain.shape
    assert (truth.max() > 0) == (window != 1)  # a window of 1 sees nothing but itself
    assert_within_budget("block_scores", ours=ours, plain=plain, truth=truth)


def test_what_the_kernel_does_not_take() -> None:
    from jenga_kernels.block_scores import block_scores

    q = torch.randn(1, 2, 32, 16, device=DEVICE)
    length = torch.tensor([32], device=DEVICE)
    with pytest.raises(ValueError, match="block_tokens 20"):
        block_scores(q, q, length, block_tokens=20, scale=1.0)
    with pytest.raises(ValueError, match=r"torch\.float64 queries"):
        block_scores(q.double(), q.double(), length, block_tokens=16, scale=1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        block_scores(q, q, length, block_tokens=16, scale=-1.0)

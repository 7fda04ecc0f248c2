"""cross_entropy: the kernel against its twin, on fresh random inputs of odd shapes.

Compiled on a CUDA device, every dtype; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU, small sizes.
"""

from __future__ import annotations

import os

import pytest
import torch
from jenga_kernels import reference
from torch import Tensor
from torch.nn import functional as F

from jenga_core.loss.segmented_cross_entropy import segmented_cross_entropy
from tests.support.assertions import assert_within_budget
from tests.support.tolerances import MARGIN

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

# S, V, distance of rows
SMALL = [(3, 1, 1), (5, 7, 7), (4, 50, 64), (2, 1000, 1024), (1, 20000, 20000)]
LARGE = [(300, 128256, 128256), (129, 50257, 50304), (64, 32000, 32000), (17, 151936, 151936), (2, 262144, 262144)]


@pytest.fixture(autouse=True)
def _needs_a_device() -> None:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1")


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    S, V, distance = shape
    generator = torch.Generator().manual_seed(V)
    logits = torch.full((S, distance), 1e4).to(dtype)  # what lies between the rows would be seen
    logits[:, :V] = (4 * torch.randn(S, V, generator=generator)).to(dtype)
    target = torch.randint(0, V, (S,), generator=generator)
    target[0], target[-1] = 0, V - 1
    return logits.to(DEVICE)[:, :V], target.to(DEVICE)


CASES = [(shape, None) for shape in (SMALL if INTERPRETED else SMALL + LARGE)]
CASES += [(shape, 5.0) for shape in (SMALL[0], SMALL[3], SMALL[4])]


@pytest.mark.parametrize(("shape", "softcap"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16]))
def test_kernel_equals_twin(shape: tuple[int, int, int], dtype: torch.dtype, softcap: float | None) -> None:
    from jenga_kernels.cross_entropy import cross_entropy

    logits, target = inputs(shape, dtype)
    between = logits.as_strided((shape[0], shape[2]), (shape[2], 1))[:, shape[1] :].clone()
    plain, truth = logits.clone(), logits.double()
    ours_loss = cross_entropy(logits, target, softcap=softcap)
    plain_loss = reference.cross_entropy(plain, target, softcap=softcap)
    truth_loss = reference.cross_entropy(truth, target, softcap=softcap)
    assert ours_loss.dtype == torch.float32
    if shape[1] > 1:
        assert_within_budget("cross_entropy", ours=ours_loss, plain=plain_loss, truth=truth_loss)
        assert_within_budget("cross_entropy", ours=logits, plain=plain, truth=truth)
    else:
        assert float(ours_loss.abs().max()) < 1e-6  # the only token there is
        assert float(logits.abs().max()) < 1e-6
    assert torch.equal(logits.as_strided((shape[0], shape[2]), (shape[2], 1))[:, shape[1] :], between)


def test_without_gradient_the_logits_stay_as_they_are() -> None:
    from jenga_kernels.cross_entropy import cross_entropy

    logits, target = inputs((2, 20000, 20000), torch.float32)
    before = logits.clone()
    loss = cross_entropy(logits, target, with_gradient=False)
    assert torch.equal(logits, before)
    torch.testing.assert_close(cross_entropy(logits, target), loss)


def test_large_logits_do_not_overflow() -> None:
    from jenga_kernels.cross_entropy import cross_entropy

    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4]], device=DEVICE)
    loss = cross_entropy(logits, torch.tensor([1, 2], device=DEVICE))
    torch.testing.assert_close(loss.cpu(), torch.tensor([6e4, 1.0986123]))
    torch.testing.assert_close(logits.cpu(), torch.tensor([[1.0, -1.0, 0.0], [1 / 3, 1 / 3, -2 / 3]]))


def test_bad_input() -> None:
    from jenga_kernels.cross_entropy import cross_entropy

    logits, target = inputs((4, 50, 64), torch.float32)
    assert cross_entropy(logits[:0], target[:0]).shape == (0,)
    outside = cross_entropy(logits, torch.tensor([0, 50, -100, 1], device=DEVICE), with_gradient=False)
    assert outside.isnan().tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        cross_entropy(logits.double(), target)
    with pytest.raises(ValueError, match="neighbours"):
        cross_entropy(logits.T.contiguous().T, target)
    with pytest.raises(ValueError, match="4 int64 targets are needed"):
        cross_entropy(logits, target[1:])
    with pytest.raises(ValueError, match="4 int64 targets are needed"):
        cross_entropy(logits, target.int())


@pytest.mark.skipif(INTERPRETED, reason="the loss uses the kernel on CUDA devices only")
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_loss_on_the_device(dtype: torch.dtype, trained_head: bool, softcap: float | None) -> None:
    M, E, V = 700, 192, 5003
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, V, (M,), generator=generator).cuda()
    targets[::3] = -100
    hidden_given = torch.randn(M, E, generator=generator).to("cuda", dtype)
    weight_given = (torch.randn(V, E, generator=generator) / 8).to("cuda", dtype)
    results = []
    for name, in_dtype in (("ours", dtype), ("plain", dtype), ("plain", torch.float64)):
        hidden = hidden_given.to(in_dtype, copy=True).requires_grad_()
        weight = weight_given.to(in_dtype, copy=True).requires_grad_(trained_head)
        if name == "ours":
            loss = segmented_cross_entropy(hidden, weight, targets, segment_tokens=128, softcap=softcap)
        else:
            logits = hidden @ weight.T
            logits = logits.to(torch.promote_types(in_dtype, torch.float32))
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            loss = F.cross_entropy(logits, targets, reduction="sum")
        (loss / 467).backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    our_loss, plain_loss, true_loss = (float(result[0]) for result in results)
    allowed = abs(plain_loss - true_loss) + MARGIN["segmented_cross_entropy", dtype] * true_loss
    assert abs(our_loss - true_loss) <= allowed
    for ours, plain, truth in zip(*(result[1:] for result in results), strict=True):
        if truth is None:
            assert ours is None
            continue
        assert ours is not None
        assert_within_budget("segmented_cross_entropy", ours=ours.to(dtype), plain=plain, truth=truth)


@pytest.mark.skipif(INTERPRETED, reason="measures a CUDA device's memory")
def test_peak_does_not_grow_with_the_rows() -> None:
    """Beyond the gradient of the rows: one buffer of logits, and one segment of rows."""
    E, V, segment = 64, 8192, 256
    weight = torch.randn(V, E, device="cuda", dtype=torch.bfloat16)
    extra = []
    for M in (1024, 8192):
        hidden = torch.randn(M, E, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        targets = torch.randint(0, V, (M,), device="cuda")
        segmented_cross_entropy(hidden, weight, targets, segment_tokens=segment)  # cuBLAS's workspace
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = segmented_cross_entropy(hidden, weight, targets, segment_tokens=segment)
        extra.append(torch.cuda.max_memory_allocated() - before - M * (2 * E + 3 * 8))
        del loss
    assert extra[1] <= extra[0] + 2**16
    assert extra[1] <= 1.2 * segment * V * 2

"""Segment by segment equals all at once: value and gradients, for every way of cutting."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jenga_core.loss.segmented_cross_entropy import segmented_cross_entropy
from tests.support.assertions import assert_within_budget

M, E, V = 37, 16, 50


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, E, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, E, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, V, (M,), generator=generator)
    targets[::3] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("segment_tokens", [1, 7, 25, 1000])
def test_value_and_gradients(dtype: torch.dtype, segment_tokens: int, softcap: float | None) -> None:
    results = []
    for function, in_dtype in (("ours", dtype), ("plain", dtype), ("plain", torch.float64)):
        hidden, weight, targets = inputs(dtype)
        hidden, weight = hidden.detach().to(in_dtype).requires_grad_(), weight.detach().to(in_dtype).requires_grad_()
        if function == "ours":
            loss = segmented_cross_entropy(hidden, weight, targets, segment_tokens=segment_tokens, softcap=softcap)
        else:
            loss = plain(hidden, weight, targets, softcap)
        (loss / 3).backward()
        results.append((loss.detach()[None], hidden.grad, weight.grad))
    for ours, plain_result, truth in zip(*results, strict=True):
        assert ours is not None and truth is not None
        name = "segmented_cross_entropy"
        assert_within_budget(name, ours=ours.to(dtype), plain=plain_result, truth=truth)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_gradcheck_in_float64(softcap: float | None) -> None:
    hidden, weight, targets = inputs(torch.float64)

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return segmented_cross_entropy(h, w, targets, segment_tokens=8, softcap=softcap)

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_a_frozen_head_gets_no_gradient_and_keeps_only_the_gradient_of_the_rows() -> None:
    hidden, weight, targets = inputs(torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        segmented_cross_entropy(hidden, weight.detach(), targets, segment_tokens=8)
    assert max(kept) == int((targets != -100).sum()) * E  # never M x V, nor V x E


def test_no_labels_is_zero_with_zero_gradients() -> None:
    hidden, weight, targets = inputs(torch.float32)
    loss = segmented_cross_entropy(hidden, weight, torch.full_like(targets, -100), segment_tokens=8)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None and not hidden.grad.any()


def test_rows_and_targets_must_match() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with pytest.raises(ValueError, match="37 hidden rows but 36 targets"):
        segmented_cross_entropy(hidden, weight, targets[1:], segment_tokens=8)


@pytest.mark.parametrize("trains_the_head", [False, True])
def test_computing_rows_without_a_label_changes_nothing(trains_the_head: bool) -> None:
    results = []
    for leave_out in (True, False):
        hidden, weight, targets = inputs(torch.float64)
        weight = weight.detach().requires_grad_(trains_the_head)
        loss = segmented_cross_entropy(hidden, weight, targets, segment_tokens=10, leave_out=leave_out)
        loss.backward()
        assert hidden.grad is not None
        assert not hidden.grad[::3].any()
        results.append((loss.detach(), hidden.grad, weight.grad if trains_the_head else loss.detach()))
    for without, everyone in zip(*results, strict=True):
        assert without is not None
        torch.testing.assert_close(everyone, without)

"""Comparisons that say where and by how much they failed."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.tolerances import MARGIN


def assert_within_budget(name: str, *, ours: Tensor, truth: Tensor, plain: Tensor | None = None) -> None:
    """Largest error of `ours` against `truth`, allowed: that of `plain` (same dtype) plus MARGIN[name, dtype].

    All errors are relative to the largest entry of the truth.
    """
    scale = truth.abs().max().double().clamp(min=1e-30)
    error = (ours.double() - truth.double()).abs() / scale
    budget = MARGIN[name, ours.dtype]
    if plain is not None:
        budget += float(((plain.double() - truth.double()).abs() / scale).max())
    worst = int(error.argmax())
    assert float(error.max()) <= budget, (
        f"{name}: error {float(error.max()):.3g} over budget {budget:.3g} at flat index {worst}: "
        f"got {ours.flatten()[worst]}, truth {truth.flatten()[worst]}"
    )


def assert_bit_identical(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Equal to the last bit."""
    assert torch.equal(ours, theirs), f"{name}: differs by up to {(ours - theirs).abs().max()}"

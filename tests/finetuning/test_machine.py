"""What `python -m jenga_core.finetuning.machine` says about this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from jenga_core.finetuning import machine

KERNEL = (
    "import torch; from jenga_core.finetuning.machine import try_a_kernel; print(try_a_kernel('cpu', torch.float32))"
)


def test_everything_is_told() -> None:
    told = machine.describe()
    assert told["torch"] == torch.__version__
    assert told["cuda"] == torch.cuda.is_available()
    assert (told["kernels"] is None) == (not told["cuda"]) and bool(told["devices"]) == told["cuda"]


def test_a_kernel_that_is_right_is_ok() -> None:
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


def test_a_kernel_that_is_wrong_or_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    block_scores = pytest.importorskip("jenga_kernels.block_scores")
    monkeypatch.setattr(block_scores, "block_scores", lambda *_, **__: torch.zeros(1, 2, 2))
    assert machine.try_a_kernel("cpu", torch.float32) == "a kernel is off by 100.0% of the largest score"

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(block_scores, "block_scores", fails)
    assert machine.try_a_kernel("cpu", torch.float32) == "RuntimeError: no compiler"

"""The Triton kernels on a CPU, in Triton's interpreter, against their twins. Compiled: tests/gpu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU_TESTS = Path(__file__).parents[1] / "gpu"


@pytest.mark.parametrize(
    "kernel", ["block_scores", "cross_entropy", "gated_activation", "involved_attention", "rotary", "rows"]
)
def test_kernel_and_twin_agree_in_the_interpreter(kernel: str) -> None:
    """A process of its own: TRITON_INTERPRET is read when a kernel is defined."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(GPU_TESTS / f"test_{kernel}.py")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=GPU_TESTS.parents[1],
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "no tests ran" not in done.stdout

"""The Triton kernel on a CPU, in Triton's interpreter, against its twin. Compiled: tests/gpu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).parents[1] / "gpu" / "test_block_scores.py"


def test_kernel_and_twin_agree_in_the_interpreter() -> None:
    """A process of its own: TRITON_INTERPRET is read when a kernel is defined."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CASES.parents[2])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "no tests ran" not in done.stdout

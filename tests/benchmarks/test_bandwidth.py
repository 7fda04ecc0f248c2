"""Ways to move rows that are compared: each runs, and those that should agree do. In Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import torch
from benchmarks import bandwidth

torch.manual_seed(0)
bandwidth.find_spec = lambda _: None  # Liger's kernels are for a GPU
x, index = torch.randn(24, 64), torch.tensor([0, 3, 4, 20])
before = x.clone()
ways = {name: (way, moved) for name, way, moved in bandwidth.movement(x, index)}
rows = x[index].nbytes
found = {name: way() for name, (way, _) in ways.items()}
assert x.equal(before), "a way changed its input"
norm = found["norm of rows: rms_norm"][0]
torch.testing.assert_close(norm, found["norm of rows: index, then PyTorch's"])
torch.testing.assert_close(norm, found["norm of rows that lie together: rms_norm"][0])
naive = found["movement: naive (index, zeros, scatter, add)"]
expected = x.clone()
expected[index] *= 2
torch.testing.assert_close(naive, expected)
torch.testing.assert_close(found["rows back: naive (zeros, scatter, add)"], expected)
assert ways["rows back: add_rows"][1] == 3 * rows
gate, up = torch.randn(4, 96), torch.randn(4, 96)
found = {name: way() for name, way, _ in bandwidth.activation(gate, up)}
torch.testing.assert_close(found["gated_activation"], found["gated activation: PyTorch"])
found = {name: way() for name, way, _ in bandwidth.rotation(torch.randn(1, 2, 8, 16))}
torch.testing.assert_close(found["rotary"], found["rotary: PyTorch"])
print("agree")
"""


def test_ways_that_are_compared_agree() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout.strip() == "agree", done.stderr[-3000:]

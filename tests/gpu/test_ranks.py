"""Two ranks on two GPUs, over NCCL: gradients are averaged, numbers too, and a wish of one is heard by both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jenga_core.finetuning import parallel

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def one_rank(rank: int, folder: Path) -> None:
    device = torch.device("cuda", rank)
    ranks = parallel.join(rank, 2, folder / "rendezvous", device)
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in ((3, 5), (7,), (2,))]
    for parameter in parameters[:2]:  # the third was not reached by backward
        parameter.grad = torch.full_like(parameter, 1.0 + 2 * rank)
    ranks.average_gradients(parameters)
    found: dict[str, Any] = {
        "gradients": [None if each.grad is None else each.grad.cpu() for each in parameters],
        "mean": ranks.mean(torch.tensor(float(rank), device=device)).item(),
        "any": [ranks.any(rank == 1, device), ranks.any(False, device)],
    }
    ranks.wait_for_all()
    torch.save(found, folder / f"{rank}.pt")
    parallel.leave()


def test_two_gpus_agree(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.gpu.test_ranks import one_rank; "
    code += "one_rank(int(sys.argv[1]), Path(sys.argv[2]))"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels"), *sys.path])}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    try:
        assert [process.wait(240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        first, second, third = found["gradients"]
        assert torch.equal(first, torch.full((3, 5), 2.0)) and torch.equal(second, torch.full((7,), 2.0))
        assert third is None
        assert found["mean"] == 0.5
        assert found["any"] == [True, False]

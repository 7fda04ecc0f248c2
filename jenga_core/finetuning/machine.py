"""What this machine can train with, as one JSON object: `python -m jenga_core.finetuning.machine`.

    {"torch", "cuda_built", "cuda", "devices": [{"name", "memory_bytes", "capability", "bfloat16"}], "triton",
     "kernels"}

`kernels` is "ok" when a kernel of ours compiles, runs on the first GPU and computes what plain PyTorch does, else what
went wrong; null without a GPU. A process of its own, because a broken driver may take its caller down with it.
"""

from __future__ import annotations

import json
from typing import Any

import torch

TOLERANCE = 1e-2
"""Of bfloat16 products against float32 ones, relative to the largest."""


def describe() -> dict[str, Any]:
    """The object above."""
    available = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda_built": torch.version.cuda,
        "cuda": available,
        "devices": [_device(index) for index in range(torch.cuda.device_count())] if available else [],
        "triton": _triton_version(),
        "kernels": try_a_kernel("cuda", torch.bfloat16) if available else None,
    }


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": properties.major >= 8,
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def try_a_kernel(device: str, dtype: torch.dtype) -> str:
    """ "ok" when block scores computed by our kernel are those of plain PyTorch, else what went wrong."""
    try:
        from jenga_kernels.block_scores import block_scores
    except ImportError as error:
        return f"cannot be loaded: {error}"
    torch.manual_seed(0)
    q_BHTD = torch.randn(1, 2, 64, 32, device=device, dtype=dtype)
    length_B = torch.tensor([64], device=device)
    try:
        scores_BNN = block_scores(q_BHTD, q_BHTD, length_B, block_tokens=32, scale=1.0)
    except Exception as error:  # noqa: BLE001 - whatever a compiler says is the answer
        return f"{type(error).__name__}: {error}"
    q_HTD = q_BHTD[0].float()
    ask_TT = (q_HTD @ q_HTD.mT).clamp(min=0).mean(0).tril(-1)
    wanted = ask_TT.reshape(2, 32, 2, 32).amax((1, 3))
    difference = float((scores_BNN[0] - wanted).abs().max() / wanted.max())
    return "ok" if difference < TOLERANCE else f"a kernel is off by {difference:.1%} of the largest score"


if __name__ == "__main__":
    print(json.dumps(describe()))

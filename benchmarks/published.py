"""Numbers of others, beside which ours are printed. Nothing here was measured by this benchmark.

`ARTIFACT`: the logs that JENGA's authors published with their artifact (Pairshoe/Jenga-AE, folder logs/), one
A800-80GB, batch 1; peak allocated GiB and step time ms. Its memory runs saved a fifth of the MLP's channels for
backward and its time runs all of them: no run shows both.

`PEERS`: the same hardware, shapes and recipe as our table (one H100 80GB, random weights, batch 1, PEFT LoRA r = 8,
torch 2.11, transformers 5.17), measured before this benchmark existed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One number pair."""

    source: str
    model: str
    tokens: int
    policy: str
    peak_gib: float | None
    step_ms: float | None


_K = 1024
_ATC = "JENGA artifact logs, A800-80GB"
_2D = "JENGA artifact logs, A800-80GB, with shifted groups"
_LAB = "earlier measurement, H100-80GB, torch 2.11, transformers 5.17"

HEADLINES = (
    "The paper claims memory up to 1.93x (mean saving over LoRA 38.2 % at 4K, 50.5 % at 8K), speed up to 1.36x and "
    "up to 2.04x with shifted groups, and token movement 10x to 50x over naive (USENIX ATC'25)."
)
"""What the paper says of itself."""

ARTIFACT: Sequence[Published] = (
    *(
        Published(_ATC, model, tokens * _K, policy, peak, step)
        for model, tokens, policy, peak, step in (
            ("llama-2-7b", 4, "LoRA", 41.7, None),
            ("llama-2-7b", 4, "Jenga", 27.8, None),
            ("llama-2-7b", 8, "LoRA", 70.8, 1891),
            ("llama-2-7b", 8, "Jenga", 42.9, 1682),
            ("llama-2-7b", 16, "LoRA + checkpointing", None, 6057),
            ("llama-2-7b", 16, "Jenga + checkpointing", None, 5140),
            ("llama-2-7b", 32, "LoRA + checkpointing", None, 15410),
            ("llama-2-7b", 32, "Jenga + checkpointing", None, 12170),
            ("llama-2-7b", 64, "LoRA + checkpointing", None, 44587),
            ("llama-2-7b", 64, "Jenga + checkpointing", None, 32242),
            ("llama-3-8b", 4, "LoRA", 46.0, None),
            ("llama-3-8b", 4, "Jenga", 29.3, None),
            ("llama-3-8b", 8, "LoRA", 76.9, 2152),
            ("llama-3-8b", 8, "Jenga", 41.1, 1849),
            ("llama-3-8b", 16, "LoRA + checkpointing", None, 6289),
            ("llama-3-8b", 16, "Jenga + checkpointing", None, 5534),
            ("llama-3-8b", 32, "LoRA + checkpointing", None, 15834),
            ("llama-3-8b", 32, "Jenga + checkpointing", None, 12952),
            ("opt-1.3b", 8, "LoRA", 22.9, None),
            ("opt-1.3b", 8, "Jenga", 15.0, None),
            ("opt-1.3b", 16, "LoRA", 43.3, None),
            ("opt-1.3b", 16, "Jenga", 27.4, None),
            ("opt-6.7b", 8, "LoRA", 59.2, None),
            ("opt-6.7b", 8, "Jenga", 45.8, None),
        )
    ),
    Published(_2D, "llama-2-7b", 64 * _K, "Jenga + checkpointing", None, 19209),
)

PEERS: Sequence[Published] = tuple(
    Published(_LAB, model, tokens * _K, policy, peak, step)
    for model, tokens, policy, peak, step in (
        ("llama-2-7b", 4, "LoRA", 38.3, 385),
        ("llama-2-7b", 8, "LoRA", 63.8, 791),
        ("llama-2-7b", 8, "LoRA + checkpointing", 17.8, 1080),
        ("llama-2-7b", 4, "LoRA + Liger", 32.3, 299),
        ("llama-2-7b", 8, "LoRA + Liger", 51.8, 635),
        ("llama-2-7b", 8, "LoRA + Liger + checkpointing", 16.2, 869),
        ("llama-3-8b", 4, "LoRA", 46.0, 390),
        ("llama-3-8b", 8, "LoRA", 76.9, 812),
        ("llama-3-8b", 8, "LoRA + checkpointing", 29.0, 1065),
        ("llama-3-8b", 32, "LoRA + checkpointing", 70.6, 5897),
        ("llama-3-8b", 8, "LoRA + Liger", 54.5, 655),
        ("llama-3-8b", 8, "LoRA + Liger + checkpointing", 18.6, 877),
        ("llama-3-8b", 32, "LoRA + Liger + checkpointing", 29.1, 5130),
        ("llama-3-8b", 64, "LoRA + Liger + checkpointing", 43.1, 14493),
    )
)


def of_model(model: str) -> list[dict[str, Any]]:
    """All numbers of one model, ready for JSON."""
    return [asdict(number) for number in (*ARTIFACT, *PEERS) if number.model == model]


def markdown(model: str) -> list[str]:
    """The table of one model's published numbers; nothing where there are none."""
    numbers = of_model(model)
    if not numbers:
        return []
    lines = ["Published by others, not measured here:", "", HEADLINES, ""]
    lines += ["| tokens | policy | peak GiB | step, ms | source |", "|---|---|---|---|---|"]
    for number in sorted(numbers, key=lambda number: number["tokens"]):
        peak = "" if number["peak_gib"] is None else f"{number['peak_gib']:.1f}"
        step = "" if number["step_ms"] is None else f"{number['step_ms']:.0f}"
        lines.append(f"| {number['tokens']:,} | {number['policy']} | {peak} | {step} | {number['source']} |")
    return lines

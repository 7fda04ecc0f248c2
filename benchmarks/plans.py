"""Which rows of the speed table are measured, in which order: what tells most comes first, in case time runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product

from benchmarks.contenders import POLICIES
from benchmarks.step import Spec

K = 1024
FULL_GRID_MODEL = "llama-3-8b"
OTHER_MODELS = ("llama-2-7b", "qwen3-8b", "opt-1.3b", "opt-6.7b")
LENGTHS = (8 * K, 32 * K, 4 * K, 16 * K, 64 * K)
KEEP_FRACTIONS = (0.4, 0.2, 0.7)
BASELINES = ("lora", "lora+liger", "lora+liger+checkpoint", "lora+checkpoint")


def row(model: str, tokens: int, policy: str, keep_fraction: float = 0.4, recompute: str | None = None) -> Spec:
    """A spec with what the policy leaves no choice about filled in."""
    chosen = POLICIES[policy]
    if recompute is None or not chosen.is_ours:
        recompute = chosen.recomputes()[0]
    return Spec(model, tokens, policy, keep_fraction if chosen.is_sparse else 1.0, recompute)


def bars(model: str = FULL_GRID_MODEL) -> list[Spec]:
    """The rows that targets compare (benchmarks/targets.py), then those that only the picture shows."""
    wanted = [
        ("lora", 8, 0.4, "none"),
        ("jenga", 8, 0.4, "none"),
        ("lora+liger", 8, 0.4, "none"),
        ("jenga-lora", 8, 0.4, "none"),
        ("lora+liger+checkpoint", 8, 0.4, "full"),
        ("jenga", 8, 0.4, "full"),
        ("jenga", 8, 0.4, "mlp"),
        ("lora+liger+checkpoint", 32, 0.4, "full"),
        ("jenga", 32, 0.4, "full"),
        ("jenga", 64, 0.4, "full"),
        ("lora+liger+checkpoint", 64, 0.4, "full"),
        ("jenga", 64, 0.4, "offload"),
        ("jenga", 32, 0.4, "mlp"),
        ("jenga", 64, 0.4, "mlp"),
        ("lora+checkpoint", 8, 0.4, "full"),
        ("lora+checkpoint", 32, 0.4, "full"),
        ("jenga-lora", 8, 0.4, "full"),
        ("jenga-lora", 32, 0.4, "full"),
        ("jenga-predicted", 8, 0.4, "none"),
        ("jenga-predicted", 32, 0.4, "full"),
        ("jenga-carried", 8, 0.4, "none"),
        ("jenga-per-layer", 8, 0.4, "none"),
        ("jenga", 8, 0.2, "none"),
        ("jenga", 32, 0.2, "full"),
        ("jenga", 64, 0.2, "full"),
        ("jenga", 32, 0.4, "none"),
        ("jenga", 64, 0.4, "none"),
        ("lora+liger", 32, 0.4, "none"),
        ("lora+liger", 64, 0.4, "none"),
        ("lora", 32, 0.4, "none"),
        ("lora", 64, 0.4, "none"),
        ("lora+checkpoint", 64, 0.4, "full"),
    ]
    return [row(model, thousands * K, policy, keep, again) for policy, thousands, keep, again in wanted]


def grid() -> list[Spec]:
    """Everything: all lengths and keep fractions for Llama-3-8B, 8K and 32K at 0.4 for the others. The bars first,
    other keep fractions and `mlp` after all else, and then what takes minutes a row. `mlp` is for `jenga` and
    Llama-3-8B: elsewhere it lies between `none` and `full`, too."""
    specs = bars()
    for tokens in LENGTHS:
        specs += [row(FULL_GRID_MODEL, tokens, policy) for policy in BASELINES]
        specs += combinations([FULL_GRID_MODEL], [tokens], ["jenga-lora", "jenga"], KEEP_FRACTIONS)
    specs += combinations([FULL_GRID_MODEL], [8 * K, 32 * K], ["jenga-carried", "jenga-per-layer"], [0.4])
    for model in OTHER_MODELS:
        for tokens in (8 * K, 32 * K):
            specs += [row(model, tokens, policy) for policy in BASELINES]
            specs += combinations([model], [tokens], ["jenga-lora", "jenga"], [0.4])
    longest = [(128, "full"), (128, "offload"), (256, "offload")]
    wanted = [spec for spec in unique(specs) if not _is_between(spec)]
    return [
        *sorted(wanted, key=_is_detail),
        *(row(FULL_GRID_MODEL, thousands * K, "jenga", 0.4, recompute) for thousands, recompute in longest),
    ]


def _is_detail(spec: Spec) -> bool:
    return spec not in bars() and (spec.keep_fraction not in (0.4, 1) or spec.recompute == "mlp")


def _is_between(spec: Spec) -> bool:
    return spec.recompute == "mlp" and (spec.model != FULL_GRID_MODEL or spec.policy != "jenga")


def combinations(
    models: Iterable[str], tokens: Iterable[int], policies: Iterable[str], keep_fractions: Iterable[float]
) -> list[Spec]:
    """The product, with every `recompute` that a policy has."""
    specs = []
    for model, length, policy, keep in product(models, tokens, policies, keep_fractions):
        specs += [row(model, length, policy, keep, recompute) for recompute in POLICIES[policy].recomputes()]
    return unique(specs)


def unique(specs: Iterable[Spec]) -> list[Spec]:
    """The first of each."""
    return list(dict.fromkeys(specs))


PLANS: Mapping[str, Callable[[], list[Spec]]] = {"bars": bars, "grid": grid}

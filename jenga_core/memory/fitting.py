"""What would fit a device: the longest context, and the change that costs least. Torch-free: the API asks too.

Both ask the estimate (estimate.py) again and again, under other settings.
"""

from __future__ import annotations

from jenga_core.config import JengaConfig
from jenga_core.memory.estimate import PLAIN_MLP, estimate
from jenga_core.memory.model_shape import ModelShape

ATTENTION_LINEARS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj"})
"""An adapter anywhere else is in the MLP, which is not lean then."""

LONGEST_TOKENS = 2**24
"""Where the search for the longest context ends."""


def longest_context(
    shape: ModelShape, config: JengaConfig, batch_size: int, capacity_bytes: int, device_kind: str = "cuda"
) -> int:
    """The largest context_length_tokens, in whole blocks, that fits a device of that size; 0 if not even a block does.

    The model's own limit on positions is not looked at.
    """
    block = config.selection.block_tokens

    def fits(blocks: int) -> bool:
        longer = config.model_copy(update={"context_length_tokens": blocks * block})
        return estimate(shape, longer, batch_size, device_kind=device_kind).device_bytes <= capacity_bytes

    fit, too_long = 0, max(LONGEST_TOKENS // block, 1)
    while too_long - fit > 1:
        middle = (fit + too_long) // 2
        fit, too_long = (middle, too_long) if fits(middle) else (fit, middle)
    return fit * block


def smallest_change(
    shape: ModelShape,
    config: JengaConfig,
    batch_size: int,
    capacity_bytes: int,
    device_kind: str = "cuda",
    host_capacity_bytes: int | None = None,
) -> str | None:
    """The change that costs least and makes the job fit a device of that size, in words; None when nothing does.

    With `host_capacity_bytes`, what waits in the host's memory must fit there, too.

    Tried in this order: computing again what was not kept (costs time), keeping the rest in the host's memory, smaller
    micro-batches, fewer kept tokens (costs quality), all of these, a shorter context.
    """

    def fits(changed: JengaConfig, batch: int) -> bool:
        return estimate(shape, changed, batch, device_kind=device_kind).device_bytes <= capacity_bytes

    def host_has_room(changed: JengaConfig) -> bool:
        host_bytes = estimate(shape, changed, batch_size, device_kind=device_kind).host_bytes
        return host_capacity_bytes is None or host_bytes <= host_capacity_bytes

    leaner = [(words, changed) for words, changed in _leaner(shape, config, device_kind) if host_has_room(changed)]
    for words, changed in leaner:
        if fits(changed, batch_size):
            return words
    if batch_size > 1 and fits(config, 1):
        return f"batch_size 1 and gradient_accumulation_steps {config.gradient_accumulation_steps * batch_size}"
    leanest = leaner[-1][1] if leaner else config
    leanest_in_words = [words for words, _ in leaner[-1:]]
    for start, changes in ((config, []), (leanest, leanest_in_words)):
        for fraction in (0.3, 0.25, 0.2, 0.15, 0.1):
            sparse = _with_keep_fraction(start, fraction)
            if sparse is not None and fits(sparse, batch_size):
                method = "" if config.enabled else "preset='jenga' with "
                return " and ".join([*changes, f"{method}keep_fraction {fraction:g}"])
    longest = longest_context(shape, leanest, 1, capacity_bytes, device_kind)
    if longest < config.selection.block_tokens * 2:
        return None
    return ", ".join([*leanest_in_words, f"batch_size 1 and context_length_tokens {longest}"])


def _leaner(shape: ModelShape, config: JengaConfig, device_kind: str) -> list[tuple[str, JengaConfig]]:
    """The ways of keeping less on the device than the config that this model and config take, least change first; in
    words, too."""
    order = ("none", "mlp", "full")
    more = list(order[order.index(config.recompute) + 1 :])
    adapts_mlp = set(config.lora.target_modules or ()) - ATTENTION_LINEARS
    if "mlp" in more and (not config.fused or shape.model_type in PLAIN_MLP or adapts_mlp):
        more.remove("mlp")
    if "full" in more and (config.lora.dropout > 0 or config.attention_group_tokens is not None):
        more.remove("full")
    found = [(f"recompute={each!r}", config.model_copy(update={"recompute": each})) for each in more]
    if device_kind == "cuda" and not config.offload and "full" in (config.recompute, *more):
        again = "" if config.recompute == "full" else "recompute='full' and "
        found.append((f"{again}offload=True", config.model_copy(update={"recompute": "full", "offload": True})))
    return found


def _with_keep_fraction(config: JengaConfig, fraction: float) -> JengaConfig | None:
    """The config that keeps only so much; None when it keeps less already."""
    if config.enabled and config.selection.keep_fraction <= fraction:
        return None
    selection = config.selection.model_copy(update={"keep_fraction": fraction})
    return config.model_copy(update={"enabled": True, "selection": selection})

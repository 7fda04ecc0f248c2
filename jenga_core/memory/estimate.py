"""How much GPU memory will a job need? Counted from shapes, before anything is loaded. Torch-free: the API asks too.

With E hidden, Q = heads x head size, K = key/value heads x head size, F intermediate, V vocabulary, L layers, T tokens
of the batch, n of them involved, and 2 bytes an element (4 on a CPU), the memory at the worst moment of a step is

    weights    parameters x 2
    adapter    16 a: parameter, gradient and AdamW's two moments in float32, of a = r x sum(in + out) parameters
    + the largest of these moments
        exact pass   its layers hold WAITING[recompute] of all T tokens, until the set is chosen (decision 0007), and
                     the last of them is at its widest: either in its MLP, or where scores are made
        keys again   with recompute `full`, what that leaves, and KEYS_AGAIN of the layer whose turn it is; where layers
                     keep their input, KEYS_IN_BACKWARD
        loss         what is kept for backward, and LOGIT elements for each of segment_tokens x V logits
        backward     what is kept, and one layer's gradients; with recompute, also what it left out

    kept       sum over layers of what a row leaves for the backward pass: ROW[recompute] elements where it runs with
               gradient; REPLAYED[recompute] where the exact pass computed it, and the K and V of all T tokens beside
               it; with `full` the input of all T tokens, if that is less

With `offload`, what is kept and what the exact pass holds is on the device for two layers at once and no more; the rest
is in the host's memory (offload.py).

The coefficients below are the whole of what is fitted. `python -m benchmarks memory` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jenga_core.config import JengaConfig, default_entry_layer, kept_blocks
from jenga_core.errors import ConfigError
from jenga_core.memory.model_shape import ModelShape

ELEMENT_BYTES = {"cuda": 2, "cpu": 4}
"""Of weights and activations: bfloat16, or float32 (finetuning/pretrained.py)."""

ROW = {
    "unfused": {"E": 16, "Q": 3, "K": 2, "F": 3},  # norms, and peft's inputs of q, k, v, o, in float32; act and up
    "none": {"E": 2, "Q": 2, "K": 2, "F": 2},  # x, x_mid (normed again in backward); q, attention out; k, v; gate, up
    "mlp": {"E": 2, "Q": 2, "K": 2, "F": 0},
    "full": {"E": 1, "Q": 0, "K": 0, "F": 0},  # x
}
"""Elements that a row with gradient leaves in one layer: left to transformers and peft, or lean, by `recompute`."""

PLAIN_MLP = {"opt": {"E": 3, "Q": 2, "K": 2, "F": 1}}
"""The same for model types whose linear layers are lean and whose norms and MLP are not: both norms' inputs, the
adapters' input; q, attention out; k, v; the MLP's activation."""

HEAD_NORMS = ("qwen3", "gemma3_text")
"""Model types that norm each head of q and k; a row with gradient leaves both as they were before, too."""

_ALL_BUT_QUERIES = {"E": 1, "Q": 1, "K": 2, "F": 0}
WAITING = {"none": _ALL_BUT_QUERIES, "mlp": _ALL_BUT_QUERIES, "full": ROW["full"]}
"""What each token leaves in a layer of the exact pass until the set is chosen: x; attention out; k, v. `full`: x."""

_INPUT_AND_OUTPUT = {"E": 1, "Q": 1, "K": 0, "F": 0}
REPLAYED = {"none": _INPUT_AND_OUTPUT, "mlp": _INPUT_AND_OUTPUT, "full": ROW["full"]}
"""What an involved row leaves of it afterwards; k and v stay for all tokens, since involved queries attend to them."""

_BEFORE_THE_MLP = {"E": 1, "Q": 1, "K": 0, "F": 0}
MADE_AGAIN = {"none": _BEFORE_THE_MLP, "mlp": _BEFORE_THE_MLP, "full": {"E": 1, "Q": 2, "K": 2, "F": 0}}
"""What a replayed row has again in its layer's backward pass: x_mid and q; with `full` attention out, k and v, too."""

EXACT_MLP = {"E": 3, "Q": 0, "K": 0, "F": 0}
"""Elements per row in a layer of the exact pass at its MLP: x_mid, what is normed, y; gate and up come in chunks."""

SCORING = {"E": 2, "Q": 3, "K": 2, "F": 0}
"""Elements per row where scores are made: x, what is normed; q and k before and after rotation."""

KEYS_AGAIN = {"E": 3, "Q": 2, "K": 1, "F": 0}
"""What each token has in the layer whose keys and values are made again: x, the next layer's, what is normed; q before
and after rotation, k before it."""

KEYS_IN_BACKWARD = {"E": 2, "Q": 2, "K": 3, "F": 0}
"""The same where they are made in backward: what is normed, the rows' gradient; q and k likewise; k, v."""

ATTENDING_AGAIN = {"E": 2, "Q": 2, "K": 0, "F": 0}
"""What a row has beside that while it attends again in backward; gate and up are not there then."""

BACKWARD = {"E": 2, "Q": 2, "K": 2, "F": 0}
"""Gradients per row inside of one layer's backward pass; those of gate and up come in chunks."""

CHUNK_ROWS = 2048
"""Rows that a lean MLP takes at once (layers/gated_mlp.py)."""

LAYERS_ON_DEVICE = 2
"""Whose parcels are on the device with `offload`: one leaves or is used while the next is made or returns."""

INPUTS_ON_DEVICE = {"pass": 3, "keys again": 2}
"""Layers whose input is there all the same: in the exact pass its own, that of the one before, which leaves, and the
first, which transformers holds; while keys are made again the first, and what left the last, beside those of
KEYS_AGAIN."""

LOSS_ROW = {"E": 3, "Q": 0, "K": 0, "F": 0}
"""Per row that carries loss: hidden state, normed, and its gradient (loss/segmented_cross_entropy.py)."""

LSE_BYTES = 4
"""Attention's log-sum-exp, per row and head, beside an attention output that is kept."""

LOGIT = 1
"""Elements per logit of a segment; the gradient takes the logits' own place."""

OPTIMIZER_BYTES = {"adamw": 8, "sgd": 0}
"""State per adapter parameter, beside parameter and gradient of 4 bytes each."""

RUNTIME_BYTES = {"cuda": 72 * 2**20, "cpu": 1280 * 2**20}
"""Workspaces of the libraries; on a CPU, the process."""

CONTEXT_BYTES = 1 * 2**30
"""What a GPU must have beside the allocator's peak: the CUDA context, and blocks that do not fit together."""

UNCERTAIN = {
    "weights": (0.005, 0.005),
    "adapter_and_optimizer": (0.02, 0.05),
    "activations": (0.06, 0.08),
    "loss": (0.3, 0.4),
    "waiting": (0.03, 0.04),
    "temporaries": (0.4, 0.5),
    "predictor": (0.5, 0.5),
    "runtime": (0.9, 2.0),
}
"""How far below and above a kind may be, as fractions of it."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak of a training step, as the allocator counts (torch.cuda.max_memory_allocated)."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int
    by_kind: Mapping[str, int]
    """At the worst moment: weights, adapter_and_optimizer, activations, waiting, loss, temporaries, predictor, runtime.
    They sum to `expected_bytes`."""

    device_kind: str = "cuda"
    host_bytes: int = 0
    """What waits in the host's memory, with `offload`; each device's process has its own."""

    @property
    def device_bytes(self) -> int:
        """What a device must have for it."""
        return self.expected_bytes + (CONTEXT_BYTES if self.device_kind == "cuda" else 0)


def estimate(
    shape: ModelShape,
    config: JengaConfig,
    batch_size: int = 1,
    optimizer: str = "adamw",
    device_kind: str = "cuda",
) -> MemoryEstimate:
    """Peak memory of one step with full contexts.

    Where thresholds choose, the share that will be kept is not known: expected counts with `keep_fraction`, low and
    high with the least and the most that may be kept.

    Raises:
        ConfigError: an optimizer or device kind that is not in the tables above.
    """
    for name, value, known in (
        ("optimizer", optimizer, OPTIMIZER_BYTES),
        ("device kind", device_kind, ELEMENT_BYTES),
    ):
        if value not in known:
            raise ConfigError(f"{name} {value!r} is not known; known are {', '.join(map(repr, known))}")
    kept = _kept_tokens(config, batch_size)
    kinds, host_bytes = _by_kind(shape, config, batch_size, kept, optimizer, device_kind)
    low = high = kinds
    if config.enabled and config.selection.by == "threshold":
        least = min(2 * config.selection.block_tokens, config.context_length_tokens) * batch_size
        most = config.context_length_tokens * batch_size
        low, _ = _by_kind(shape, config, batch_size, least, optimizer, device_kind)
        high, _ = _by_kind(shape, config, batch_size, most, optimizer, device_kind)
    return MemoryEstimate(
        low_bytes=int(sum(size * (1 - UNCERTAIN[kind][0]) for kind, size in low.items())),
        expected_bytes=sum(kinds.values()),
        high_bytes=int(sum(size * (1 + UNCERTAIN[kind][1]) for kind, size in high.items())),
        by_kind=kinds,
        device_kind=device_kind,
        host_bytes=host_bytes,
    )


def _row_of(shape: ModelShape, config: JengaConfig) -> Mapping[str, int]:
    """The elements that a row leaves in a layer that runs with gradient."""
    row = dict(ROW[config.recompute])
    if config.recompute == "none" and not config.fused:
        row = dict(ROW["unfused"])
    elif config.recompute == "none" and shape.model_type in PLAIN_MLP:
        row = dict(PLAIN_MLP[shape.model_type])
    elif config.recompute != "full" and shape.model_type in HEAD_NORMS:
        row["Q"], row["K"] = row["Q"] + 1, row["K"] + 1
    if config.attention_group_tokens is not None:  # both halves' outputs, and what is made of them
        row["Q"] += 1
    return row


def _kept_tokens(config: JengaConfig, batch_size: int) -> int:
    """Tokens of the batch that stay involved: whole blocks, at least two of each sequence."""
    tokens = config.context_length_tokens
    if not config.enabled:
        return tokens * batch_size
    block = config.selection.block_tokens
    blocks = kept_blocks(math.ceil(tokens / block), config.selection.keep_fraction)
    return min(blocks * block, tokens) * batch_size


def _by_kind(
    shape: ModelShape, config: JengaConfig, batch_size: int, kept: int, optimizer: str, device_kind: str
) -> tuple[dict[str, int], int]:
    """On the device at the worst moment, and in the host's memory."""
    element = ELEMENT_BYTES[device_kind]
    tokens = config.context_length_tokens * batch_size
    selection = config.selection
    lse = LSE_BYTES * shape.heads if config.recompute != "full" else 0

    def size(table: Mapping[str, int]) -> int:
        return element * sum(count * shape.widths[letter] for letter, count in table.items())

    left = _row_of(shape, config)
    leaves = leaves_alone = size(left) + lse
    if config.enabled:
        leaves_alone -= int((1 - selection.mlp_keep_fraction) * element * left["F"] * shape.intermediate)
    dense, exact, alone = _layers(shape, config)  # for all tokens with gradient; without; for the rows alone
    keys_and_values = tokens * size({"K": 2})
    leaves_exact = kept * (size(REPLAYED[config.recompute]) + lse) + keys_and_values
    keeps_input = config.recompute == "full" and tokens * size({"E": 1}) <= leaves_exact
    if keeps_input:
        leaves_exact = tokens * size({"E": 1})
    layers = [(dense, tokens * leaves), (exact, leaves_exact), (alone, kept * leaves_alone)]
    offloads = config.offload and device_kind == "cuda"

    def on_device(layers: list[tuple[int, int]]) -> int:
        """Bytes of layers of each kind, given how many there are and what each leaves."""
        if not offloads:
            return sum(count * left for count, left in layers)
        return max(min(count, LAYERS_ON_DEVICE) * left for count, left in layers)

    activations = on_device(layers)
    in_host_memory = sum(count * left for count, left in layers)

    is_chunked = config.fused and shape.model_type not in PLAIN_MLP
    wide = size({"F": 1})

    def chunk(rows: int) -> int:
        return wide * (min(rows, CHUNK_ROWS) if is_chunked else rows)

    with_loss = tokens if not config.enabled or selection.loss_on == "all" else kept
    logits = min(config.loss.segment_tokens, with_loss) * shape.vocabulary * LOGIT * element

    widest = tokens if dense else kept
    made_again = widest * size(MADE_AGAIN[config.recompute]) if exact or config.recompute == "full" else 0
    backward = widest * size(BACKWARD) + made_again
    in_mlp = chunk(widest) * (3 if exact or config.recompute != "none" else 1)
    backward += max(in_mlp, widest * size(ATTENDING_AGAIN)) if config.recompute == "full" else in_mlp

    kinds = {
        "weights": shape.parameters * element,
        "adapter_and_optimizer": _adapter_parameters(shape, config) * (8 + OPTIMIZER_BYTES[optimizer]),
        "predictor": _predictor_bytes(shape, config, device_kind),
        "runtime": RUNTIME_BYTES[device_kind],
    }
    moments: list[dict[str, int]] = [
        {"activations": activations, "loss": logits + with_loss * size(LOSS_ROW)},
        {"activations": activations, "temporaries": backward},
    ]
    if exact:
        together = exact if selection.scope == "carried" else 1
        each_waits = tokens * (size(WAITING[config.recompute]) + lse)
        in_host_memory = max(in_host_memory, dense * tokens * leaves + together * each_waits)
        waiting = min(together, INPUTS_ON_DEVICE["pass"] if offloads else together) * each_waits
        inside = max(tokens * size(EXACT_MLP) + 2 * chunk(tokens), tokens * size(SCORING))
        moments.append({"activations": on_device(layers[:1]), "waiting": waiting, "temporaries": inside})
        if keeps_input:
            made = max(tokens * size(KEYS_IN_BACKWARD), backward + keys_and_values)
            moments.append({"activations": on_device(layers[:2]), "temporaries": made})
        elif config.recompute == "full":
            waiting = INPUTS_ON_DEVICE["keys again"] * each_waits if offloads and together > 1 else 0
            made = tokens * size(KEYS_AGAIN)
            moments.append({"activations": on_device(layers[:2]), "waiting": waiting, "temporaries": made})
    none = {"activations": 0, "waiting": 0, "loss": 0, "temporaries": 0}
    worst = max(moments, key=lambda moment: sum(moment.values()))
    return {**kinds, **none, **worst}, in_host_memory if offloads else 0


def _layers(shape: ModelShape, config: JengaConfig) -> tuple[int, int, int]:
    """How many layers run for all tokens with gradient, for all without, and for the involved rows alone."""
    if not config.enabled:
        return shape.layers, 0, 0
    entry = _entry_layer(shape, config)
    first = 0 if config.selection.below_entry == "forward_only" else entry
    last = entry if config.selection.unselected == "eliminated" else shape.layers
    return first, last - first, shape.layers - last


def _entry_layer(shape: ModelShape, config: JengaConfig) -> int:
    """The layer that chooses."""
    entry = config.selection.entry_layer
    if entry is None:
        return default_entry_layer(shape.layers, shape.layer_types)
    return min(entry, shape.layers)


def _adapter_parameters(shape: ModelShape, config: JengaConfig) -> int:
    """r x (in + out) for each linear layer that has an adapter."""
    wide = shape.widths
    sizes = {
        "q_proj": wide["E"] + wide["Q"],
        "k_proj": wide["E"] + wide["K"],
        "v_proj": wide["E"] + wide["K"],
        "o_proj": wide["Q"] + wide["E"],
        "out_proj": wide["Q"] + wide["E"],
        "qkv_proj": wide["E"] + wide["Q"] + 2 * wide["K"],
        "gate_up_proj": wide["E"] + 2 * wide["F"],
    }
    targets = config.lora.target_modules or ("q_proj", "k_proj", "v_proj", "o_proj")
    return shape.layers * config.lora.r * sum(sizes.get(name, wide["E"] + wide["F"]) for name in targets)


def _predictor_bytes(shape: ModelShape, config: JengaConfig, device_kind: str) -> int:
    """Two networks of three matrices in float32 for each layer that selects, where scores may be predicted."""
    score = config.selection.score
    if not config.enabled or not (score == "predicted" or (score == "auto" and device_kind == "cuda")):
        return 0
    selecting = 1 if config.selection.scope == "carried" else shape.layers - _entry_layer(shape, config)
    hidden = config.predictor.hidden
    last = hidden * config.predictor.head_size * (shape.heads + shape.kv_heads)
    return 4 * selecting * (2 * (shape.hidden * hidden + hidden * hidden) + last)

"""The least time a policy's step can take: the FLOPs it needs and no more, at the rates the card reaches.

    roofline = linear FLOPs / GEMM rate + forward attention / forward rate + backward attention / backward rate

Counted, per multiply-add 2 FLOPs:

    a frozen linear layer       2 rows in out forward, as much for its input's gradient, nothing for its weight
    its adapter of rank r       2 rows r (in + out) forward, twice that backward
    causal attention            two products over all pairs of a query and an earlier key forward (2 H D T^2), five
                                backward; a product is 2 H D FLOPs per pair
    deferred selection          below the entry layer all tokens forward; the involved ones' outputs are known from it,
                                so they cost the backward pass and what it makes again: q, o, gate, up. Attention
                                backward is three products over the pairs of an involved query and any key before it
                                (scores, the gradient of the weights, dQ) and two over the pairs within the involved
                                (dK, dV)
    block scores                one product over the pairs of a query that is asked and a key before it, and these
                                queries and all keys of the layer that chooses
    the loss                    two products of head and rows with a label
    recompute `mlp`             gate and up again
    recompute `full`            ours, and checkpointing: everything again but the layer's last product, attention too;
                                below the entry layer K and V of all tokens, and attention of the involved ones

Not counted: norms, activations, rotary angles, the optimizer and all movement, which a perfect kernel hides; and the
gradient of layer 0's input, which nobody needs. Involved tokens are taken as spread evenly over the sequence unless
their places are given.

Shapes and letters: L layers, T tokens, G involved tokens, E hidden, F intermediate, H query and K key heads, D head
size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.contenders import LORA_RANK, POLICIES
from benchmarks.shapes import Shape

GEMM_FLOPS_PER_SECOND = 685e12
"""bf16 on an H100 SXM with random operands, measured (680 to 730)."""

ATTENTION_TERAFLOPS: Sequence[tuple[int, float, float]] = ((8192, 559, 483), (32768, 593, 517), (65536, 619, 527))
"""Tokens, forward and backward TFLOP/s of cuDNN's causal attention there (32 heads of 128), counted causally."""


@dataclass(frozen=True)
class Ceilings:
    """The rates that a roofline divides by."""

    gemm_flops_per_second: float = GEMM_FLOPS_PER_SECOND
    attention_teraflops: Sequence[tuple[int, float, float]] = ATTENTION_TERAFLOPS
    """Ascending tokens, forward, backward; between two lengths linear in their logarithm, constant beyond."""

    def attention_flops_per_second(self, tokens: float) -> tuple[float, float]:
        """Forward and backward, at a length."""
        table = self.attention_teraflops
        if tokens <= table[0][0]:
            return table[0][1] * 1e12, table[0][2] * 1e12
        for (t0, f0, b0), (t1, f1, b1) in pairwise(table):
            if tokens <= t1:
                share = math.log(tokens / t0) / math.log(t1 / t0)
                return (f0 + share * (f1 - f0)) * 1e12, (b0 + share * (b1 - b0)) * 1e12
        return table[-1][1] * 1e12, table[-1][2] * 1e12


@dataclass
class Work:
    """What a step must compute."""

    linear_flops: float = 0
    loss_flops: float = 0
    attention: list[tuple[float, float, float]] = field(default_factory=list)
    """Length whose rate applies, forward and backward FLOPs."""

    @property
    def attention_flops(self) -> float:
        """Both ways."""
        return sum(forward + backward for _, forward, backward in self.attention)

    def seconds(self, ceilings: Ceilings) -> float:
        """The roofline."""
        total = (self.linear_flops + self.loss_flops) / ceilings.gemm_flops_per_second
        for length, forward, backward in self.attention:
            forward_rate, backward_rate = ceilings.attention_flops_per_second(length)
            total += forward / forward_rate + backward / backward_rate
        return total


@dataclass(frozen=True)
class Involved:
    """The tokens that stay."""

    tokens: int
    pairs: float
    """Pairs of an involved query and a key, of any token, at or before it; T^2 / 2 for all T tokens."""

    asking: int | None = None
    """Tokens whose queries are asked for block scores; None means all."""

    @staticmethod
    def evenly(tokens: int, keep_fraction: float, block_tokens: int = 64) -> Involved:
        """ceil(keep_fraction x blocks) blocks, at least 2, spread evenly."""
        blocks = math.ceil(tokens / block_tokens)
        kept = min(max(math.ceil(keep_fraction * blocks), 2) * block_tokens, tokens)
        return Involved(kept, kept * tokens / 2)

    @staticmethod
    def of_blocks(
        blocks: Sequence[int], tokens: int, block_tokens: int = 64, *, asking_blocks: Sequence[int] | None = None
    ) -> Involved:
        """These blocks of the sequence."""
        starts = [block * block_tokens for block in blocks]
        sizes = [min(block_tokens, tokens - start) for start in starts]
        pairs = sum(size * (start + size / 2) for start, size in zip(starts, sizes, strict=True))
        asking = None if asking_blocks is None else min(len(asking_blocks) * block_tokens, tokens)
        return Involved(sum(sizes), pairs, asking)


def work(
    shape: Shape, policy: str, tokens: int, *, recompute: str, involved: Involved, entry_layer: int | None = None
) -> Work:
    """What one step at batch 1 needs, every token with a label.

    Args:
        policy: a key of benchmarks.contenders.POLICIES.
        involved: for sparse policies; see `Involved`.
        entry_layer: None means three fifths of the layers, the default.
    """
    chosen = POLICIES[policy]
    again = "full" if chosen.uses_checkpointing or recompute == "offload" else recompute
    step = _Step(shape, tokens, involved, shape.layers * 3 // 5 if entry_layer is None else entry_layer, again)
    selection = (chosen.fields or {}).get("selection", {})
    if not chosen.is_sparse:
        step.dense(range(shape.layers))
        step.loss(tokens)
    elif selection.get("scope") == "per_layer":
        step.dense(range(step.entry))
        for _ in range(step.entry, shape.layers):
            step.choose()
            step.rows_alone()
        step.loss(tokens)
    else:
        if selection.get("below_entry") == "involved":
            step.dense(range(step.entry))
        else:
            step.deferred(range(step.entry))
        step.choose()
        for _ in range(step.entry, shape.layers):
            step.rows_alone()
        step.loss(involved.tokens)
    return step.work


class _Step:
    """Adds up the parts of a step."""

    def __init__(self, shape: Shape, tokens: int, involved: Involved, entry: int, recompute: str) -> None:
        self.shape, self.tokens, self.involved = shape, tokens, involved
        self.entry = entry
        self.work = Work()
        E, F = shape.hidden, shape.intermediate
        wide, narrow = shape.heads * shape.head_size, shape.key_heads * shape.head_size
        self.q, self.kv, self.o = _Linear(E, wide), _Linear(E, narrow, 2), _Linear(wide, E)
        self.up = _Linear(E, F, 2 if shape.is_gated else 1, rank=0)
        self.down = _Linear(F, E, rank=0)
        self.every = (self.q, self.kv, self.o, self.up, self.down)
        self.again: tuple[_Linear, ...] = {
            "none": (),
            "mlp": (self.up,),
            "full": (self.q, self.kv, self.o, self.up),
        }[recompute]
        self.attends_again = recompute == "full"
        self.product = 2 * shape.heads * shape.head_size

    def dense(self, layers: range) -> None:
        """Layers that all tokens run through with gradient."""
        for layer in layers:
            self._with_gradient(self.tokens, is_first=layer == 0)

    def rows_alone(self) -> None:
        """A layer of the involved tokens among themselves, with gradient."""
        self._with_gradient(self.involved.tokens, is_first=False)

    def deferred(self, layers: range) -> None:
        """All tokens without gradient; the involved ones' outputs are known, their backward makes the rest again."""
        T, G = self.tokens, self.involved.tokens
        for layer in layers:
            self._linear(T, forward=self.every)
            self._linear(G, forward=(self.q, self.o, self.up), backward=self.every)
            if layer == 0:
                self._spare_input_gradient(G)
            self._attention(T, 2 * T**2 / 2, 3 * self.involved.pairs + 2 * G**2 / 2)
            if self.attends_again:
                self._linear(T, forward=(self.kv,))
                self._attention(T, 2 * self.involved.pairs, 0)

    def choose(self) -> None:
        """Exact block scores of one layer."""
        asking = self.tokens if self.involved.asking is None else self.involved.asking
        self._linear(asking, forward=(self.q,))
        self._linear(self.tokens, forward=(_Linear(self.shape.hidden, self.shape.key_heads * self.shape.head_size),))
        self._attention(self.tokens, asking * self.tokens / 2, 0)

    def loss(self, rows: int) -> None:
        """Two products with the head."""
        self.work.loss_flops += 4 * rows * self.shape.hidden * self.shape.vocabulary

    def _with_gradient(self, rows: int, *, is_first: bool) -> None:
        self._linear(rows, forward=(*self.every, *self.again), backward=self.every)
        if is_first:
            self._spare_input_gradient(rows)
        self._attention(rows, (4 if self.attends_again else 2) * rows**2 / 2, 5 * rows**2 / 2)

    def _spare_input_gradient(self, rows: int) -> None:
        """Nobody asks for the gradient of the embedding's output."""
        self.work.linear_flops -= rows * (self.q.input_gradient + self.kv.input_gradient)

    def _linear(self, rows: int, *, forward: Sequence[_Linear], backward: Sequence[_Linear] = ()) -> None:
        self.work.linear_flops += rows * sum(layer.forward for layer in forward)
        self.work.linear_flops += rows * sum(layer.backward for layer in backward)

    def _attention(self, length: int, forward_products: float, backward_products: float) -> None:
        self.work.attention.append((length, self.product * forward_products, self.product * backward_products))


@dataclass(frozen=True)
class _Linear:
    """FLOPs per row of frozen matrices with adapters."""

    inputs: int
    outputs: int
    count: int = 1
    rank: int = LORA_RANK

    @property
    def forward(self) -> int:
        return self.count * (2 * self.inputs * self.outputs + 2 * self.rank * (self.inputs + self.outputs))

    @property
    def input_gradient(self) -> int:
        return self.count * (2 * self.inputs * self.outputs + 2 * self.rank * self.inputs)

    @property
    def backward(self) -> int:
        return self.count * (2 * self.inputs * self.outputs + 4 * self.rank * (self.inputs + self.outputs))

"""The roofline against sums done by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.contenders import POLICIES
from benchmarks.roofline import Ceilings, Involved, Work, work
from benchmarks.shapes import SHAPES, Shape

# E = 4, F = 6, one layer or two, two query heads over one key head of size 2, V = 10, T = 8, adapters of rank 8
ONE = Shape("llama", 10, 4, 6, 1, 2, 1, 2)
TWO = Shape("llama", 10, 4, 6, 2, 2, 1, 2)
T = 8
Q, K, V, O = 4 * 4, 4 * 2, 4 * 2, 4 * 4  # noqa: E741  # weights
GATE_UP, DOWN = 2 * 4 * 6, 6 * 4
ADAPTERS = 8 * (4 + 4) + 2 * 8 * (4 + 2) + 8 * (4 + 4)  # q, k and v, o
LAYER = Q + K + V + O + GATE_UP + DOWN
FIRST_INPUT = 2 * T * (Q + K + V + 8 * (4 + 4 + 4))  # gradient of layer 0's input through q, k, v and their A
PRODUCT = 2 * 2 * 2  # FLOPs per pair: two heads of size 2

EVERYTHING = Involved(T, T * T / 2)


def flops(shape: Shape, policy: str, recompute: str = "none", involved: Involved = EVERYTHING, **given: int) -> Work:
    return work(shape, policy, T, recompute=recompute, involved=involved, **given)


@pytest.mark.parametrize("policy", ["lora", "lora+liger", "jenga-lora"])
def test_a_dense_step_by_hand(policy: str) -> None:
    step = flops(ONE, policy)
    assert step.linear_flops == 2 * T * LAYER * 2 + 2 * T * ADAPTERS * 3 - FIRST_INPUT
    assert step.attention_flops == PRODUCT * 7 * T * T / 2
    assert step.loss_flops == 2 * T * 4 * 10 * 2


def test_only_the_first_layer_is_spared_its_input_gradient() -> None:
    step = flops(TWO, "lora")
    assert step.linear_flops == 2 * (2 * T * LAYER * 2 + 2 * T * ADAPTERS * 3) - FIRST_INPUT


def test_what_is_recomputed_is_added() -> None:
    plain = flops(ONE, "jenga-lora")
    assert flops(ONE, "jenga-lora", "mlp").linear_flops - plain.linear_flops == 2 * T * GATE_UP
    for policy in ("jenga-lora", "lora+checkpoint"):
        full = flops(ONE, policy, "full")
        assert full.linear_flops - plain.linear_flops == 2 * T * (LAYER - DOWN + ADAPTERS)
        assert full.attention_flops - plain.attention_flops == PRODUCT * 2 * T * T / 2


def test_below_the_entry_layer_full_makes_keys_and_the_rows_attention_again() -> None:
    rows = Involved(4, 20.0)
    kept, again = (flops(TWO, "jenga", recompute, involved=rows, entry_layer=1) for recompute in ("mlp", "full"))
    keys_of_all = 2 * T * (K + V + 2 * 8 * (4 + 2))
    alone = 2 * 4 * (Q + K + V + O + 2 * 8 * (4 + 4) + 2 * 8 * (4 + 2))
    assert again.linear_flops - kept.linear_flops == keys_of_all + alone
    assert again.attention_flops - kept.attention_flops == PRODUCT * (2 * rows.pairs + 2 * 4 * 4 / 2)


def test_deferred_selection_by_hand() -> None:
    """Layer 0 runs for 8 tokens and backward for 4 involved, layer 1 chooses and runs for the 4."""
    G, seen = 4, 20.0
    step = flops(TWO, "jenga", involved=Involved(G, seen), entry_layer=1)
    for_all = 2 * T * (LAYER + ADAPTERS)
    again = 2 * G * (Q + O + GATE_UP + 2 * 8 * (4 + 4)) + 2 * G * LAYER + 4 * G * ADAPTERS
    chooses = 2 * T * (Q + K + 8 * (4 + 4) + 8 * (4 + 2))
    alone = 2 * G * LAYER * 2 + 2 * G * ADAPTERS * 3
    assert step.linear_flops == for_all + again - FIRST_INPUT * G / T + chooses + alone
    pairs_all, pairs_involved = T * T / 2, G * G / 2
    below = 2 * pairs_all + 3 * seen + 2 * pairs_involved
    assert step.attention_flops == PRODUCT * (below + pairs_all + 7 * pairs_involved)
    assert step.loss_flops == 2 * G * 4 * 10 * 2


def test_queries_that_are_not_asked_cost_nothing() -> None:
    every = flops(TWO, "jenga", involved=Involved(4, 20.0), entry_layer=1)
    some = flops(TWO, "jenga", involved=Involved(4, 20.0, asking=2), entry_layer=1)
    assert every.linear_flops - some.linear_flops == 2 * (T - 2) * (Q + 8 * (4 + 4))
    assert every.attention_flops - some.attention_flops == PRODUCT * (T - 2) * T / 2


def test_carried_selection_is_dense_below_the_entry_layer() -> None:
    involved = Involved(4, 16)
    carried = flops(TWO, "jenga-carried", involved=involved, entry_layer=1)
    per_layer = flops(TWO, "jenga-per-layer", involved=involved, entry_layer=1)
    assert carried.linear_flops == per_layer.linear_flops
    assert carried.attention_flops == per_layer.attention_flops
    assert (carried.loss_flops, per_layer.loss_flops) == (2 * 4 * 4 * 10 * 2, 2 * T * 4 * 10 * 2)


def test_an_mlp_without_a_gate_has_two_matrices() -> None:
    opt = Shape("opt", 10, 4, 6, 1, 2, 2, 2, is_gated=False)
    weights = 4 * Q + 2 * DOWN
    assert flops(opt, "lora").linear_flops == 2 * T * weights * 2 + 2 * T * 4 * 8 * 8 * 3 - 2 * T * 3 * (Q + 8 * 4)


def test_a_dense_step_of_llama_3_8b_at_8k_takes_half_a_second_at_best() -> None:
    """480 ms: 360 of GEMMs, 122 of attention."""
    step = work(SHAPES["llama-3-8b"], "lora", 8192, recompute="none", involved=Involved(8192, 0))
    assert step.seconds(Ceilings()) == pytest.approx(0.480, rel=0.01)


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("recompute", ["none", "mlp", "full"])
def test_every_policy_needs_some_work_and_sparse_ones_less(policy: str, recompute: str) -> None:
    shape = SHAPES["llama-3-8b"]
    seconds = [
        work(shape, policy, 8192, recompute=recompute, involved=Involved.evenly(8192, keep)).seconds(Ceilings())
        for keep in (0.2, 0.4, 0.7)
    ]
    assert seconds == sorted(seconds)
    assert (seconds[0] < seconds[2]) == POLICIES[policy].is_sparse


def test_rates_lie_between_those_of_neighbouring_lengths() -> None:
    ceilings = Ceilings(1.0, ((1024, 100.0, 50.0), (4096, 300.0, 70.0)))
    assert ceilings.attention_flops_per_second(10) == (100e12, 50e12)
    assert ceilings.attention_flops_per_second(2048) == pytest.approx((200e12, 60e12))
    assert ceilings.attention_flops_per_second(10**6) == (300e12, 70e12)


def test_seconds_divide_each_part_by_its_rate() -> None:
    step = Work(linear_flops=6e12, loss_flops=4e12, attention=[(64, 3e12, 5e12)])
    assert step.seconds(Ceilings(10e12, ((64, 3.0, 2.5),))) == pytest.approx(1 + 1 + 2)


def test_involved_tokens_are_whole_blocks_and_two_at_least() -> None:
    assert Involved.evenly(8192, 0.4).tokens == 52 * 64
    assert Involved.evenly(8192, 0.001).tokens == 2 * 64
    assert Involved.evenly(100, 1.0) == Involved(100, 100 * 100 / 2)


def test_pairs_of_chosen_blocks_count_the_keys_before_them() -> None:
    assert Involved.of_blocks([0, 2], 24, block_tokens=8) == Involved(16, 8 * 4 + 8 * 20)
    assert Involved.of_blocks([1], 12, block_tokens=8) == Involved(4, 4 * 10)
    assert Involved.of_blocks([0, 2], 24, block_tokens=8, asking_blocks=[2]).asking == 8
    assert math.isclose(Involved.of_blocks(range(4), 32, block_tokens=8).pairs, 32 * 32 / 2)

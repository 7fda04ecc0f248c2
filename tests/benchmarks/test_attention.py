"""The other ways to attend compute what our kernel does, so that their times can be compared."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from jenga_kernels import reference

from benchmarks.attention import BLOCK_TOKENS, Case, flex, sdpa_mask
from benchmarks.shapes import SHAPES

CPU = torch.device("cpu")


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    return Case.random(SHAPES["tiny"], 4 * BLOCK_TOKENS, 0.5, CPU, torch.float32)


def test_the_first_block_is_involved_and_blocks_are_in_order(case: Case) -> None:
    assert case.position_G.shape == (2 * BLOCK_TOKENS,)
    assert case.position_G[:BLOCK_TOKENS].tolist() == list(range(BLOCK_TOKENS))
    assert case.position_G.sort()[0].equal(case.position_G)
    assert case.position_G[BLOCK_TOKENS] % BLOCK_TOKENS == 0


def test_a_full_mask_agrees_and_so_does_its_gradient(case: Case) -> None:
    o_BHGD, lse_BHG = ours(case)
    other_BHGD = sdpa_mask(case)()
    torch.testing.assert_close(other_BHGD, o_BHGD)
    do_BHGD = torch.randn_like(o_BHGD)
    (dq_BHGD,) = torch.autograd.grad(other_BHGD, (case.q_BHGD,), do_BHGD)
    our_dq_BHGD, _, _ = reference.involved_attention_backward(
        do_BHGD, case.q_BHGD, case.k_BKTD, case.v_BKTD, o_BHGD, lse_BHG, case.first_BG, case.last_BG, scale=case.scale
    )
    torch.testing.assert_close(dq_BHGD, our_dq_BHGD)


def test_flex_attention_agrees(case: Case) -> None:
    constant = replace(  # on a CPU it has no backward
        case, q_BHGD=case.q_BHGD.detach(), k_BKTD=case.k_BKTD.detach(), v_BKTD=case.v_BKTD.detach()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks to be compiled
        other_BHGD = flex(constant)()
    torch.testing.assert_close(other_BHGD, ours(case)[0].detach())


def ours(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.involved_attention(
        case.q_BHGD, case.k_BKTD, case.v_BKTD, case.first_BG, case.last_BG, scale=case.scale
    )


def test_needed_flops_by_hand() -> None:
    """Tiny: 4 heads of 16. Blocks 0 and 1 of 2, all tokens: T (T + 1) / 2 pairs."""
    case = Case.random(SHAPES["tiny"], 2 * BLOCK_TOKENS, 1.0, CPU, torch.float32)
    T = 2 * BLOCK_TOKENS
    pairs = T * (T + 1) / 2
    assert case.forward_flops == 2 * (2 * 4 * 16) * pairs
    assert case.backward_flops == 5 * (2 * 4 * 16) * pairs

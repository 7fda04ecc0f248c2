"""Who sees whom, against the mask written out token by token."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.selection import select
from jenga_core.layers.sight import Sight


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, Tensor, Tensor, int | None]:
    """Tokens, a padding mask, positions that start anew at each document, and a window."""
    tokens = draw(st.integers(1, 24))
    mask, positions = torch.ones(2, tokens, dtype=torch.long), torch.zeros(2, tokens, dtype=torch.long)
    for row in range(2):
        padding = draw(st.integers(0, tokens - 1))
        on_the_left = draw(st.booleans())
        mask[row, slice(0, padding) if on_the_left else slice(tokens - padding, tokens)] = 0
        position = 0
        for token in range(tokens):
            position = 0 if draw(st.integers(0, 5)) == 0 else position
            positions[row, token] = position
            position += 1
    return tokens, mask, positions, draw(st.none() | st.integers(1, tokens + 2))


def written_out(mask_T: Tensor, positions_T: Tensor, window: int | None) -> Tensor:
    """T x T bool, for real tokens."""
    tokens = len(mask_T)
    document, of_token = 0, []
    for token in range(tokens):
        is_start = bool(mask_T[token]) and (int(positions_T[token]) == 0 or not mask_T[:token].any())
        document += is_start
        of_token.append(document if mask_T[token] else 0)
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        for j in range(i + 1):
            near = window is None or i - j < window
            seen[i, j] = of_token[i] > 0 and of_token[i] == of_token[j] and near
    return seen


def as_mask(first_G: Tensor, last_G: Tensor, keys: int) -> Tensor:
    key = torch.arange(keys)
    return (key >= first_G[:, None]) & (key <= last_G[:, None])


@given(layouts(), st.floats(0.1, 1.0))
def test_it_is_the_mask_written_out(layout: tuple[int, Tensor, Tensor, int | None], keep_fraction: float) -> None:
    tokens, mask, positions, window = layout
    blocks = split_into_blocks(2, tokens, block_tokens=3, attention_mask_BT=mask, position_ids=positions)
    sight = Sight.of_all_tokens(blocks, window)
    scores = torch.arange(blocks.num_blocks, dtype=torch.float).expand(2, -1).sin()
    kept = select(scores, blocks, mask.bool(), keep_fraction=keep_fraction)
    over_all, among = sight.over_all_keys(kept), sight.among_themselves(kept)
    for row in range(2):
        truth = written_out(mask[row], positions[row], window)
        real = mask[row].bool()
        ours = as_mask(sight.first_BG[row], sight.last_BG[row], tokens)
        assert torch.equal(ours[real], truth[real])
        assert not (ours[~real] & real).any(), "padding sees no token"
        is_kept = kept.is_kept_BG[row]
        index = kept.token_index_BG[row][is_kept]
        assert torch.equal(as_mask(over_all.first_BG[row], over_all.last_BG[row], tokens)[is_kept], truth[index])
        rows = as_mask(among.first_BG[row], among.last_BG[row], len(is_kept))
        assert torch.equal(rows[is_kept][:, is_kept], truth[index][:, index])
        assert not rows[:, ~is_kept].any(), "a surplus row has no key"
        for surplus in (over_all, among):
            assert (surplus.last_BG[row][~is_kept] == -1).all()
        if sight.is_causal:
            causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
            assert torch.equal(truth[real], (causal & real)[real])


def test_is_causal_only_where_a_library_may_take_over() -> None:
    plain = split_into_blocks(1, 8, block_tokens=4)
    assert Sight.of_all_tokens(plain, None).is_causal
    assert Sight.of_all_tokens(plain, 8).is_causal  # a window that reaches everything
    assert not Sight.of_all_tokens(plain, 7).is_causal
    two = split_into_blocks(1, 8, block_tokens=4, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]))
    assert not Sight.of_all_tokens(two, None).is_causal
    half = select(
        torch.tensor([[0.0, 1.0, 2.0]]),
        split_into_blocks(1, 12, block_tokens=4),
        torch.ones(1, 12).bool(),
        keep_fraction=0.5,
    )
    everyone = Sight.of_all_tokens(split_into_blocks(1, 12, block_tokens=4), None)
    assert not everyone.over_all_keys(half).is_causal
    assert everyone.among_themselves(half).is_causal

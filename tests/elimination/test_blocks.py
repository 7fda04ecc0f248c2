"""Tokens to blocks: documents, padding, short last blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.errors import ConfigError


def test_the_docstring_s_example() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 0]])
    mask = torch.tensor([[1] * 9 + [0] * 2])
    blocks = split_into_blocks(1, 11, block_tokens=4, attention_mask_BT=mask, position_ids=positions)
    assert blocks.block_of_token_BT.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 2, -1, -1]]
    assert blocks.document_of_block_BN.tolist() == [[0, 0, 1]]


def test_left_padding_moves_the_start_of_the_document() -> None:
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    blocks = split_into_blocks(1, 8, block_tokens=2, attention_mask_BT=mask)
    assert blocks.block_of_token_BT.tolist() == [[-1, -1, -1, 0, 0, 1, 1, 2]]


def test_sequences_of_a_batch_have_their_own_number_of_blocks() -> None:
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5])
    blocks = split_into_blocks(2, 8, block_tokens=2, attention_mask_BT=mask)
    assert blocks.document_of_block_BN.tolist() == [[0, 0, 0, 0], [0, 0, -1, -1]]
    has_property = torch.zeros(2, 8, dtype=torch.bool)
    has_property[0, 7] = has_property[1, 0] = has_property[1, 7] = True  # the last of these is padding
    assert blocks.any_token(has_property).tolist() == [[False, False, False, True], [True, False, False, False]]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), padding=st.integers(0, 9), b=st.integers(1, 16))
def test_blocks_of_packed_documents(lengths: list[int], padding: int, b: int) -> None:
    """Every document is cut from its own start; no block holds two documents or more than b tokens."""
    positions = torch.cat([torch.arange(length) for length in lengths] + [torch.zeros(padding, dtype=torch.long)])
    mask = torch.cat([torch.ones(sum(lengths)), torch.zeros(padding)])
    tokens = len(positions)
    blocks = split_into_blocks(1, tokens, block_tokens=b, attention_mask_BT=mask[None], position_ids=positions[None])
    expected, block = [], -1
    for length in lengths:
        for offset in range(length):
            block += offset % b == 0
            expected.append(block)
    assert blocks.block_of_token_BT[0].tolist() == expected + [-1] * padding
    documents = [index for index, length in enumerate(lengths) for _ in range(-(-length // b))]
    assert blocks.document_of_block_BN[0].tolist() == documents


def test_documents_that_end_with_a_block_are_not_one_document() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    assert split_into_blocks(1, 8, block_tokens=4).is_plain
    assert not split_into_blocks(1, 8, block_tokens=4, position_ids=positions).is_plain


def test_a_document_starts_wherever_a_position_does_not_follow_the_one_before() -> None:
    """transformers tells packed documents apart by this, whatever position the next one starts at."""
    positions = torch.tensor([[3, 4, 5, 9, 10, 0, 1]])
    blocks = split_into_blocks(1, 7, block_tokens=4, position_ids=positions)
    assert blocks.block_of_token_BT.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert blocks.document_of_block_BN.tolist() == [[0, 1, 2]]


def test_a_mask_with_a_gap_is_refused() -> None:
    with pytest.raises(ConfigError, match="zeros between real tokens"):
        split_into_blocks(2, 6, block_tokens=2, attention_mask_BT=torch.tensor([[1] * 6, [0, 1, 0, 1, 1, 0]]))


@given(batch=st.integers(1, 3), tokens=st.integers(1, 70), b=st.integers(1, 16))
def test_without_mask_and_positions_blocks_are_those_of_a_mask_of_ones(batch: int, tokens: int, b: int) -> None:
    known = split_into_blocks(batch, tokens, block_tokens=b)
    found = split_into_blocks(batch, tokens, block_tokens=b, attention_mask_BT=torch.ones(batch, tokens))
    for name, value in vars(known).items():
        other = getattr(found, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name

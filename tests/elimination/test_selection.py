"""Which blocks are kept: the count, the forced ones, labels first, then score."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.selection import select


def kept(scores: list[float], labels: list[int], keep_fraction: float, *, block_tokens: int = 2) -> list[int]:
    """Blocks kept of one document without padding; `labels` are the blocks whose first token has a label."""
    tokens = len(scores) * block_tokens
    blocks = split_into_blocks(1, tokens, block_tokens=block_tokens)
    has_label = torch.zeros(1, tokens, dtype=torch.bool)
    has_label[0, [block * block_tokens for block in labels]] = True
    selection = select(torch.tensor([scores]), blocks, has_label, keep_fraction=keep_fraction)
    chosen = selection.kept_BN[0].nonzero().flatten().tolist()
    tokens_of_chosen = [block * block_tokens + offset for block in chosen for offset in range(block_tokens)]
    assert selection.token_index_BG[0].tolist() == tokens_of_chosen
    assert float(selection.kept_fraction) == pytest.approx(len(chosen) / len(scores))
    return chosen


def test_first_block_and_last_labelled_block_are_always_kept() -> None:
    assert kept([0, 9, 9, 9, 0], labels=[0, 1, 2, 3, 4], keep_fraction=0.4) == [0, 4]
    assert kept([0, 9, 9, 9, 0], labels=[1, 2], keep_fraction=0.4) == [0, 2]


def test_labelled_blocks_come_before_better_scores() -> None:
    assert kept([0, 9, 1, 2, 0, 8], labels=[2, 3, 4], keep_fraction=0.5) == [0, 3, 4]
    assert kept([0, 9, 1, 2, 0, 8], labels=[4], keep_fraction=0.5) == [0, 1, 4]


def test_without_labels_the_first_block_and_the_best_scores() -> None:
    assert kept([0, 1, 5, 2], labels=[], keep_fraction=0.5) == [0, 2]


@pytest.mark.parametrize(
    ("blocks", "keep_fraction", "count"), [(30, 0.1, 3), (10, 0.05, 2), (5, 1.0, 5), (1, 0.4, 1), (5, 0.41, 3)]
)
def test_how_many(blocks: int, keep_fraction: float, count: int) -> None:
    assert len(kept([0.0] * blocks, list(range(blocks)), keep_fraction)) == count


@given(data=st.data())
def test_selection_of_packed_and_padded_batches(data: st.DataObject) -> None:
    """Per document: the right count, the first block, a label if it has one; never padding; order kept."""
    b = data.draw(st.integers(1, 5), label="block_tokens")
    keep_fraction = data.draw(st.floats(0.01, 1.0), label="keep_fraction")
    rows = data.draw(
        st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=4), min_size=1, max_size=3), label="documents"
    )
    tokens = max(map(sum, rows)) + data.draw(st.integers(0, 3), label="padding")
    mask = torch.zeros(len(rows), tokens, dtype=torch.long)
    positions = torch.zeros(len(rows), tokens, dtype=torch.long)
    for row, lengths in enumerate(rows):
        mask[row, : sum(lengths)] = 1
        positions[row, : sum(lengths)] = torch.cat([torch.arange(length) for length in lengths])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999), label="seed"))
    has_label = (torch.rand(mask.shape, generator=generator) < 0.2) & mask.bool()
    blocks = split_into_blocks(len(rows), tokens, block_tokens=b, attention_mask_BT=mask, position_ids=positions)
    scores = torch.rand(len(rows), blocks.num_blocks, generator=generator)
    selection = select(scores, blocks, has_label, keep_fraction=keep_fraction)

    for row, lengths in enumerate(rows):
        index = selection.token_index_BG[row][selection.is_kept_BG[row]].tolist()
        assert index == sorted(set(index))
        assert mask[row, index].all()
        first_token, first_block = 0, 0
        for length in lengths:
            count = -(-length // b)
            in_document = [token - first_token for token in index if first_token <= token < first_token + length]
            of_document = selection.kept_BN[row, first_block : first_block + count]
            assert int(of_document.sum()) == min(count, max(2, math.ceil(count * keep_fraction - 1e-9)))
            assert bool(of_document[0])
            assert sorted({offset // b for offset in in_document}) == of_document.nonzero().flatten().tolist()
            labels = has_label[row, first_token : first_token + length]
            if labels.any() and count > 1:
                assert labels[in_document].any()
            first_token, first_block = first_token + length, first_block + count

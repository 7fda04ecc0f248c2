"""Targets: all labelled blocks when they are few, else a run that visits every block once before any twice."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.selection import select
from jenga_core.elimination.targets import target_blocks


def targets(labels: list[bool], *, epoch: int = 0, seed: int = 0, **fractions: float) -> list[int]:
    """Target blocks of one document with blocks of one token."""
    tokens = len(labels)
    ids = torch.randint(0, 50_000, (1, tokens), generator=torch.Generator().manual_seed(seed))
    blocks = split_into_blocks(1, tokens, block_tokens=1)
    given = {"keep_fraction": 0.4, "target_fraction": 0.5, **fractions}
    chosen = target_blocks(ids, torch.tensor([labels]), blocks, epoch=epoch, **given)
    return chosen[0].nonzero().flatten().tolist()


def test_few_labelled_blocks_are_all_targets() -> None:
    labels = [False] * 20
    labels[3] = labels[17] = True
    assert targets(labels) == [3, 17]
    assert targets([False] * 20) == []


def test_a_run_of_a_text_has_the_asked_length_and_no_gap() -> None:
    starts = set()
    for seed in range(20):
        run = targets([True] * 30, seed=seed)  # 12 kept, 6 of them targets
        assert len(run) == 6
        gaps = [b - a for a, b in itertools.pairwise(run) if b - a != 1]
        assert gaps in ([], [30 - 6 + 1])  # round the end
        starts.add(run[0])
    assert len(starts) > 8  # another place for another text


def test_unlabelled_blocks_are_skipped_by_a_run() -> None:
    labels = [block % 2 == 0 for block in range(40)]
    run = targets(labels)  # 16 kept, 8 targets of 20 labelled
    assert len(run) == 8
    assert all(labels[block] for block in run)


@given(
    size=st.integers(2, 40),
    keep_fraction=st.floats(0.05, 1.0),
    target_fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_every_block_is_learnt_from_once_before_one_is_twice(
    size: int, keep_fraction: float, target_fraction: float, seed: int
) -> None:
    def at(epoch: int) -> list[int]:
        return targets(
            [True] * size, epoch=epoch, seed=seed, keep_fraction=keep_fraction, target_fraction=target_fraction
        )

    length = len(at(0))
    assert at(0) == at(0)
    epochs = math.ceil(size / length)
    times = [0] * size
    for epoch in range(epochs):
        for block in at(epoch):
            times[block] += 1
    assert min(times) == 1
    assert max(times) <= 2
    assert sum(times) == epochs * length


@given(data=st.data())
def test_targets_fit_into_the_selection(data: st.DataObject) -> None:
    """Packed, padded, any labels: targets have labels, are all kept, and leave the first block its place."""
    rows = data.draw(st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=3), min_size=1, max_size=3))
    b, keep_fraction = data.draw(st.integers(1, 5)), data.draw(st.floats(0.01, 1.0))
    tokens = max(map(sum, rows)) + data.draw(st.integers(0, 3))
    mask = torch.zeros(len(rows), tokens, dtype=torch.long)
    positions = torch.zeros(len(rows), tokens, dtype=torch.long)
    for row, lengths in enumerate(rows):
        mask[row, : sum(lengths)] = 1
        positions[row, : sum(lengths)] = torch.cat([torch.arange(length) for length in lengths])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    has_label = (torch.rand(mask.shape, generator=generator) < data.draw(st.floats(0, 1))) & mask.bool()
    blocks = split_into_blocks(len(rows), tokens, block_tokens=b, attention_mask_BT=mask, position_ids=positions)
    ids = torch.randint(0, 99, mask.shape, generator=generator)
    chosen = target_blocks(
        ids,
        has_label,
        blocks,
        keep_fraction=keep_fraction,
        target_fraction=data.draw(st.floats(0.01, 1.0)),
        epoch=data.draw(st.integers(0, 5)),
    )
    assert not (chosen & ~blocks.any_token(has_label)).any()
    scores = torch.rand(chosen.shape, generator=generator)
    kept = select(scores, blocks, has_label, keep_fraction=keep_fraction, target_BN=chosen).kept_BN
    first_of_two = blocks.is_first_of_document() & (blocks.document_of_block_BN >= 0)
    assert (kept | ~first_of_two).all()
    for row, lengths in enumerate(rows):
        for document, length in enumerate(lengths):
            of_document = blocks.document_of_block_BN[row] == document
            size = -(-length // b)
            assert int(kept[row][of_document].sum()) == min(size, max(2, math.ceil(size * keep_fraction - 1e-9)))
            if size > 1:
                assert (kept[row] | ~chosen[row] | ~of_document).all()
                labels = blocks.any_token(has_label)[row][of_document]
                assert bool(chosen[row][of_document].any()) == bool(labels.any())


def test_targets_do_not_depend_on_where_a_document_lies() -> None:
    """On the right or left of padding, or behind another one: the same run of its blocks in every epoch."""
    document = torch.randint(0, 1000, (1, 80), generator=torch.Generator().manual_seed(5))
    pad = torch.full((1, 13), -100)
    other = torch.randint(0, 1000, (1, 24), generator=torch.Generator().manual_seed(6))
    positions = torch.cat([torch.arange(24), torch.arange(80)])[None]

    def chosen(targets: torch.Tensor, start: int, **where: Any) -> list[list[bool]]:
        blocks = split_into_blocks(*targets.shape, block_tokens=8, **where)
        found = [
            target_blocks(targets, targets != -100, blocks, keep_fraction=0.4, target_fraction=0.5, epoch=epoch)
            for epoch in range(5)
        ]
        return [each[0, start : start + 10].tolist() for each in found]

    alone = chosen(document, 0)
    assert sum(map(sum, alone)) == 10
    right = torch.cat([document, pad], dim=1)
    left = torch.cat([pad, document], dim=1)
    assert chosen(right, 0, attention_mask_BT=(right != -100)) == alone
    assert chosen(left, 0, attention_mask_BT=(left != -100)) == alone
    assert chosen(torch.cat([other, document], dim=1), 3, position_ids=positions) == alone

"""Column pooling, and that informed scores find the block that everybody asks."""

from typing import Any

import pytest
import torch

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.informativeness import informativeness, mean_by_distance, pool_columns


@pytest.mark.parametrize("window_tokens", [1, 2, 7, 8, 9, 10, 24, 100])
def test_number_of_query_blocks_that_see_a_key_block_through_a_window(window_tokens: int) -> None:
    """Against the pairs of blocks in which a token sees another, found token by token."""
    q, k = torch.ones(1, 1, 44, 4), torch.ones(1, 1, 44, 4)
    blocks = split_into_blocks(1, 44, block_tokens=8)
    total, mean = (
        informativeness(q, k, blocks, scale=1.0, column=column, window_tokens=window_tokens)
        for column in ("sum", "mean")
    )
    token = torch.arange(44)
    sees = (token[:, None] >= token) & (token[:, None] - token < window_tokens)
    pairs = torch.zeros(6, 6, dtype=torch.bool).index_put(
        (token[:, None].expand(44, 44)[sees] // 8, token.expand(44, 44)[sees] // 8), torch.tensor(True)
    )
    torch.testing.assert_close(mean * pairs.sum(0), total)


def test_column_mean_is_the_sum_over_its_viewers() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 40, 8, generator=generator), torch.randn(2, 2, 40, 8, generator=generator)
    blocks = split_into_blocks(2, 40, block_tokens=8)
    total = informativeness(q, k, blocks, scale=0.3, column="sum")
    mean = informativeness(q, k, blocks, scale=0.3, column="mean")
    torch.testing.assert_close(mean * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), total)


def test_a_block_that_later_tokens_ask_scores_highest() -> None:
    """Keys of block 2 point where every query looks; all other keys point away."""
    q = torch.zeros(1, 2, 64, 4)
    q[..., 0] = 1
    k = torch.zeros(1, 2, 64, 4)
    k[..., 0] = -1
    k[:, :, 16:24, 0] = 5
    blocks = split_into_blocks(1, 64, block_tokens=8)
    for column in ("sum", "mean"):
        scores = informativeness(q, k, blocks, scale=1.0, column=column)
        assert int(scores.argmax()) == 2
        assert float(scores[0, 5]) == 0  # negative scores do not count


def test_relative_scores_forget_distance_and_keep_content() -> None:
    """Scores that depend on distance alone come out alike; twice the asking comes out as more than the others."""
    blocks = split_into_blocks(1, 10, block_tokens=1)
    block = torch.arange(10.0)
    scores = (1 / (1 + (block[:, None] - block).clamp(min=0)))[None]
    scores[:, :, 0] = 1000.0  # the attention sink has no part in what is usual
    relative = pool_columns(scores, blocks, "relative")
    torch.testing.assert_close(relative[0, 1:], torch.ones(9))
    scores[:, :, 4] *= 2
    asked = pool_columns(scores, blocks, "relative")[0]
    assert int(asked[1:].argmax()) + 1 == 4
    assert int(pool_columns(scores, blocks, "mean")[0, 1:].argmax()) + 1 == 9  # what is near, whatever it holds


def test_the_mean_at_a_distance_is_over_the_pairs_that_see_each_other() -> None:
    """Against a loop; two packed documents, each by itself, and a window of two blocks back."""
    positions = torch.tensor([[*range(7), *range(4)]])
    blocks = split_into_blocks(1, 11, block_tokens=1, position_ids=positions)
    scores = torch.rand(1, 11, 11, generator=torch.Generator().manual_seed(0))
    means = mean_by_distance(scores, blocks, reach_blocks=2)
    for start, end in ((0, 7), (7, 11)):
        for distance in range(3):
            pairs = [float(scores[0, n + distance, n]) for n in range(start + 1, end - distance)]
            expected = sum(pairs) / len(pairs) if pairs else 1.0
            for n in range(start, end - distance):
                assert float(means[0, n + distance, n]) == pytest.approx(expected)


@pytest.mark.parametrize("column", ["sum", "mean", "relative"])
def test_only_those_who_ask_count(column: Any) -> None:
    blocks = split_into_blocks(1, 5, block_tokens=1)
    scores = torch.ones(1, 5, 5).tril()
    scores[0, 4] = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])
    asking = torch.tensor([[False, False, True, False, False]])
    of_block_2 = pool_columns(scores, blocks, column, asking_BN=asking)
    assert of_block_2[0, 3:].tolist() == [0, 0]  # block 2 sees neither
    assert float(of_block_2[0, 1]) > 0
    changed = scores.clone()
    changed[0, 3:] = 0  # what the others ask has no part in it, but for what is usual at a distance
    if column != "relative":
        assert torch.equal(pool_columns(changed, blocks, column, asking_BN=asking), of_block_2)


def test_what_is_usual_at_a_distance_is_the_documents_own() -> None:
    """Packed behind another, a document's blocks score as they do alone."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 9, 9, generator=generator)
    packed = split_into_blocks(
        1, 36, block_tokens=4, position_ids=torch.cat([torch.arange(12), torch.arange(24)])[None]
    )
    assert packed.document_of_block_BN.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1]]
    for column in ("sum", "mean", "relative"):
        found = pool_columns(scores, packed, column)[0]  # type: ignore[arg-type]
        for start, end in ((0, 3), (3, 9)):
            alone = split_into_blocks(1, 4 * (end - start), block_tokens=4)
            expected = pool_columns(scores[:, start:end, start:end], alone, column)[0]  # type: ignore[arg-type]
            torch.testing.assert_close(found[start:end], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_and_dtype_change_no_mean(dtype: torch.dtype) -> None:
    scores = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=dtype)
    positions = torch.cat([torch.arange(12), torch.arange(24)])[None]
    packed = split_into_blocks(1, 36, block_tokens=4, position_ids=positions)
    expected = mean_by_distance(scores, packed)
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_by_distance(scores, packed)
    assert found.dtype == dtype
    assert torch.equal(found, expected)

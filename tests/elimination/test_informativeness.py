"""Column pooling, and that informed scores find the block that everybody asks."""

import pytest
import torch

from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.informativeness import informativeness, query_blocks_that_see


def test_number_of_query_blocks_that_see_a_key_block() -> None:
    document_of_block = torch.tensor([[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]])
    seen = query_blocks_that_see(document_of_block)
    assert seen[0].tolist() == [3, 2, 1, 2, 1]
    assert seen[1, :2].tolist() == [2, 1]


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

"""Which sequences predictors learn from."""

from __future__ import annotations

import pytest

from jenga_core.finetuning.predictors import _spread


@pytest.mark.parametrize("first", [50, 8192])
def test_as_many_sequences_are_taken_as_hold_the_tokens_whatever_the_first_are_like(first: int) -> None:
    others = 8192 if first == 50 else 50
    sequences = [{"input_ids": range(first if index < 2 else others)} for index in range(1000)]
    chosen = _spread(sequences, 20_000)
    tokens = sum(len(sequences[index]["input_ids"]) for index in chosen)
    assert 0.5 * 20_000 < tokens < 2 * 20_000
    assert len(set(chosen)) == len(chosen) >= 2

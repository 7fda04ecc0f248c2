"""Rows to sequences: windows, masked labels, cuts that are counted, padding by length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jenga_core.errors import DataError
from jenga_core.finetuning.data import collator, encode, encode_file
from jenga_core.training_rows import ChatRow, CompletionRow, TextRow
from tests.support.tiny import tiny_tokenizer

END = 2


def decode(ids: list[int]) -> str:
    return tiny_tokenizer().decode(ids)


def labelled(sequence: dict[str, Any]) -> str:
    return decode([label for label in sequence["labels"] if label != -100])


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_long_text_becomes_windows_that_lose_nothing() -> None:
    text = "abcdefghij" * 5
    windows = list(encode(TextRow(text), tiny_tokenizer(), 16))
    assert [len(window["input_ids"]) for window in windows] == [16, 16, 10, 9]
    assert decode([token for window in windows for token in window["input_ids"]]) == text + "<end>"
    assert all(window["labels"] == window["input_ids"] for window in windows)


@given(st.integers(1, 200), st.integers(8, 64))
def test_windows_are_full_and_none_is_short_but_of_a_short_text(letters: int, context: int) -> None:
    lengths = [len(w["input_ids"]) for w in encode(TextRow("a" * letters), tiny_tokenizer(), context)]
    assert sum(lengths) == letters + 1
    assert len(lengths) == -(-(letters + 1) // context)
    assert all(length == context for length in lengths[:-2])
    assert len(lengths) == 1 or min(lengths) * 2 >= context


def test_an_empty_text_teaches_nothing_and_is_left_out() -> None:
    assert list(encode(TextRow(""), tiny_tokenizer(), 16)) == []


def test_completion_rows_learn_the_completion_and_its_end() -> None:
    (sequence,) = encode(CompletionRow("2+2=", "4"), tiny_tokenizer(), 64)
    assert decode(sequence["input_ids"]) == "2+2=4<end>"
    assert labelled(sequence) == "4<end>"
    assert not sequence["cut"]


def test_chat_rows_learn_what_the_assistant_says() -> None:
    messages = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}) * 2
    (sequence,) = encode(ChatRow(messages), tiny_tokenizer(), 200)
    assert decode(sequence["input_ids"]) == "[user]hi<end>[assistant]hello<end>" * 2
    assert labelled(sequence) == "hello<end>hello<end>"


def test_a_template_that_rewrites_earlier_messages_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    row = ChatRow(({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}))
    with pytest.raises(DataError, match="rewrites earlier messages"):
        list(encode(row, tokenizer, 64))


def test_encode_file_counts_cut_and_dropped_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b" * 40},
        {"prompt": "a" * 40, "completion": "b"},  # nothing of the completion is left after the cut
    )
    encoded = encode_file(path, tiny_tokenizer(), context_length_tokens=16, cache_folder=tmp_path / "cache")
    assert (encoded.rows, len(encoded.sequences), encoded.cut_rows, encoded.dropped_rows) == (3, 2, 1, 1)
    assert encoded.tokens == 3 + 16
    assert encoded.label_tokens == 2 + 15


def test_encode_file_can_be_repeated_with_other_rows(tmp_path: Path) -> None:
    for text in ("one", "three"):
        path = write(tmp_path / "rows.jsonl", {"text": text})
        encoded = encode_file(path, tiny_tokenizer(), context_length_tokens=64, cache_folder=tmp_path / "cache")
        assert decode(encoded.sequences[0]["input_ids"]) == text + "<end>"


def test_a_bad_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "fine"}, {"messages": []})
    with pytest.raises(DataError, match="Row 2: 'messages' must be a non-empty list"):
        encode_file(path, tiny_tokenizer(), context_length_tokens=64, cache_folder=tmp_path / "cache")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    path = write(tmp_path / "rows.jsonl", {"text": "x"}, {"messages": [{"role": "assistant", "content": "x"}]})
    with pytest.raises(DataError, match="Row 2: the model has no chat template"):
        encode_file(path, tokenizer, context_length_tokens=64, cache_folder=tmp_path / "cache")


def test_a_file_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "a" * 40, "completion": "b"})
    with pytest.raises(DataError, match="no row of 1 leaves a sequence with a label in 16 tokens"):
        encode_file(path, tiny_tokenizer(), context_length_tokens=16, cache_folder=tmp_path / "cache")


def test_padding_is_masked_by_length_and_the_end_token_stays_a_label() -> None:
    """The tokenizer pads with its end token: masking by id would unlearn how to stop."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END
    batch = collator(tokenizer)([{"input_ids": [5, 6, END], "labels": [5, 6, END]}, {"input_ids": [7], "labels": [7]}])
    assert batch["input_ids"].tolist() == [[5, 6, END], [7, END, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, END], [7, -100, -100]]


def test_a_chat_that_begins_with_the_assistant_learns_no_preamble() -> None:
    """Many templates write a system prompt of their own first."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "[system]Be nice<end>" + str(tokenizer.chat_template)
    messages = ({"role": "assistant", "content": "Hi there"}, {"role": "user", "content": "Hi"})
    (sequence,) = encode(ChatRow(messages), tokenizer, 200)
    assert decode(sequence["input_ids"]).startswith("[system]Be nice<end>[assistant]Hi there")
    assert labelled(sequence) == "Hi there<end>"


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    rows = write(tmp_path / "rows.jsonl", {"text": "hello"})
    with pytest.raises(DataError, match="no end-of-text token"):
        encode_file(rows, tokenizer, context_length_tokens=16, cache_folder=tmp_path / "cache")

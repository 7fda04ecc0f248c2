"""Rows of a training file: three kinds, and every refusal says which row and why."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jenga_core import training_rows
from jenga_core.errors import DataError
from jenga_core.training_rows import ChatRow, CompletionRow, TextRow, parse_row, read_rows

CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ({"text": "once"}, TextRow("once")),
        ({"text": "once", "source": "ignored"}, TextRow("once")),
        ({"messages": CHAT}, ChatRow(tuple(CHAT))),
        ({"messages": CHAT, "text": "messages win"}, ChatRow(tuple(CHAT))),
        ({"prompt": "2 + 2 =", "completion": " 4"}, CompletionRow("2 + 2 =", " 4")),
        ({"prompt": "", "completion": "from nothing"}, CompletionRow("", "from nothing")),
    ],
)
def test_the_three_kinds(value: dict[str, object], row: training_rows.Row) -> None:
    assert parse_row(json.dumps(value).encode()) == row


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_row(b'\xef\xbb\xbf{"text": "x"}') == training_rows.TextRow("x")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not valid JSON: Expecting property name enclosed in double quotes (character 2)"),
        (b'{"text": NaN}', "NaN is not JSON"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 10)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "expected a JSON object, got a list"),
        (b"{}", "got the keys []"),
        (b'{"content": "x"}', "expected 'text', 'messages', or 'prompt' and 'completion'; got the keys ['content']"),
        (b'{"text": 3}', "'text' must be a string, got a number"),
        (b'{"text": " \\n"}', "'text' is empty"),
        (b'{"prompt": "p"}', "'completion' must be a string, got nothing"),
        (b'{"completion": "c"}', "'prompt' must be a string, got nothing"),
        (b'{"prompt": "p", "completion": ""}', "'completion' is empty"),
        (b'{"messages": []}', "'messages' must be a non-empty list"),
        (b'{"messages": "hello"}', "'messages' must be a non-empty list"),
        (b'{"messages": [1]}', "messages[0] must be an object, got a number"),
        (b'{"messages": [{"role": "robot", "content": ""}]}', "messages[0].role must be one of"),
        (b'{"messages": [{"role": ["user"], "content": ""}]}', "messages[0].role must be one of"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content must be a string, got nothing"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "nothing to learn from"),
        (b'{"messages": [{"role": "assistant", "content": " "}]}', "nothing to learn from"),
    ],
)
def test_every_refusal_says_why(line: bytes, reason: str) -> None:
    with pytest.raises(DataError) as refused:
        parse_row(line)
    assert reason in refused.value.message
    assert refused.value.status == 400


def test_a_row_is_not_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_rows, "MAX_ROW_BYTES", 20)
    assert parse_row(b'{"text": "12345678"}') == TextRow("12345678")
    with pytest.raises(DataError, match="the row has 21 bytes; at most 20"):
        parse_row(b'{"text": "123456789"}')


def test_rows_are_counted_from_one_blank_lines_included() -> None:
    lines = [b'{"text": "a"}\n', b"\n", b'{"text": "b"}\n', b'{"text": 1}\n']
    read = read_rows(lines)
    assert [next(read), next(read)] == [TextRow("a"), TextRow("b")]
    with pytest.raises(DataError, match="Row 4: 'text' must be a string"):
        next(read)


@pytest.mark.parametrize("lines", [[], [b"\n", b"  \r\n"]])
def test_a_file_without_rows_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        list(read_rows(lines))


@given(st.text().filter(str.strip))
def test_any_text_survives(text: str) -> None:
    assert parse_row(json.dumps({"text": text}).encode()) == TextRow(text)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_row_or_a_data_error(line: bytes) -> None:
    try:
        row = parse_row(line)
    except DataError:
        return
    assert isinstance(row, TextRow | ChatRow | CompletionRow)

"""The rows of a training file: one JSON object per line, of one of three kinds.

    {"text": "..."}                                   loss on every token
    {"messages": [{"role": ..., "content": ...}]}     OpenAI chat; loss on the assistant's messages
    {"prompt": "...", "completion": "..."}            loss on the completion

Torch-free and shared: the API checks an upload with the code that the trainer reads it with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jenga_core.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_ROW_BYTES = 64 * 2**20
"""A longer line is refused: one row should be one document, not a corpus."""


@dataclass(frozen=True)
class TextRow:
    """Plain text, longer than the context or not."""

    text: str


@dataclass(frozen=True)
class ChatRow:
    """A conversation that ends, or at least speaks, with the assistant."""

    messages: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class CompletionRow:
    """A prompt and the text that should follow it."""

    prompt: str
    completion: str


Row = TextRow | ChatRow | CompletionRow


def read_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield every row of a JSONL file; blank lines are skipped.

    Raises:
        DataError: "Row 3: ..." (counted from 1) at the first row that is wrong, or if there is no row at all.
    """
    found = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse_row(line)
        except DataError as error:
            raise DataError(f"Row {number}: {error.message}") from error
        found = True
    if not found:
        raise DataError("the file holds no rows; one JSON object per line was expected")


def parse_row(line: bytes) -> Row:
    """One line to one row. Raises DataError without the row's number."""
    if len(line) > MAX_ROW_BYTES:
        raise DataError(f"the row has {len(line)} bytes; at most {MAX_ROW_BYTES} are allowed, split the document")
    try:
        value = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constants)  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise DataError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg} (character {error.pos + 1})") from error
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, got {_kind(value)}")
    if "messages" in value:
        return ChatRow(_messages(value["messages"]))
    if "text" in value:
        return TextRow(_text(value, "text"))
    if "prompt" in value or "completion" in value:
        return CompletionRow(_text(value, "prompt", may_be_empty=True), _text(value, "completion"))
    raise DataError(f"expected 'text', 'messages', or 'prompt' and 'completion'; got the keys {sorted(value)[:8]}")


def _text(value: dict[str, Any], key: str, *, may_be_empty: bool = False) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise DataError(f"'{key}' must be a string, got {_kind(text)}")
    if not text.strip() and not may_be_empty:
        raise DataError(f"'{key}' is empty")
    return text


def _messages(messages: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError("'messages' must be a non-empty list")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise DataError(f"{where} must be an object, got {_kind(message)}")
        if message.get("role") not in ROLES:
            raise DataError(f"{where}.role must be one of {', '.join(ROLES)}; got {message.get('role')!r}")
        if not isinstance(message.get("content"), str):
            raise DataError(f"{where}.content must be a string, got {_kind(message.get('content'))}")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise DataError("no assistant message with content: there is nothing to learn from")
    return tuple(messages)


def _kind(value: Any) -> str:
    """As JSON calls it."""
    kinds = {bool: "true or false", dict: "an object", list: "a list", str: "a string", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")

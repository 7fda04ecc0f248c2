"""How many tokens a row will be, without a model stack: `tokenizers` for the ids, jinja for the chat template.

The trainer encodes with transformers (finetuning/data.py); this counts what it will make of a row. Both read the same
tokenizer.json and the same template, and tests/service/estimates compares them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from jenga_core.errors import ConfigError, DataError
from jenga_core.training_rows import ChatRow, CompletionRow, Row, TextRow

PIECE_CHARACTERS = 2**20
AT_ONCE = 64
"""Texts, or pieces of one, that are encoded at the same time."""

_ONE_END_TOKEN = 1


@dataclass(frozen=True)
class RowTokens:
    """Of one row: its tokens, and those before the first that carries loss."""

    tokens: int
    before_loss: int
    is_text: bool
    """Texts are split into windows; all else is cut at the context's end."""


class TokenCounter:
    """Counts with the tokenizer and the chat template of a model folder. Raises ConfigError when there are none."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises the bare class
            raise ConfigError(f"the model's tokenizer.json cannot be read: {error}", param="model") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._about = _about(folder)
        self._template = _template(folder, self._about)

    def count(self, rows: Sequence[Row]) -> list[RowTokens]:
        """Tokens of each row. Raises DataError for a chat that the model has no template for."""
        parts = [self._parts(row) for row in rows]
        lengths = iter(self._lengths([part for of_row in parts for part in of_row]))
        return [_row_tokens(row, [next(lengths) for _ in of_row]) for row, of_row in zip(rows, parts, strict=True)]

    def _lengths(self, texts: Sequence[tuple[str, bool]]) -> list[int]:
        """Tokens of each text; True: with the special tokens that the tokenizer adds.

        A long text is encoded in pieces, which keeps memory small and can be off by a token at each seam.
        """
        lengths = [0] * len(texts)
        for special in (True, False):
            pieces = [
                (index, piece)
                for index, (text, wanted) in enumerate(texts)
                for number, piece in enumerate(_pieces(text))
                if (wanted and number == 0) is special
            ]
            for start in range(0, len(pieces), AT_ONCE):
                some = pieces[start : start + AT_ONCE]
                encoded = self._tokenizer.encode_batch_fast([piece for _, piece in some], add_special_tokens=special)
                for (index, _), encoding in zip(some, encoded, strict=True):
                    lengths[index] += len(encoding.ids)
        return lengths

    def _parts(self, row: Row) -> list[tuple[str, bool]]:
        """The texts to encode, each with whether special tokens are added, as the trainer adds them."""
        if isinstance(row, TextRow):
            return [(row.text, True)]
        if isinstance(row, CompletionRow):
            return [(row.prompt, True), (row.completion, False)]
        messages = list(row.messages)
        spoken = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
        before = self._render(messages[:spoken], open_turn=True) if spoken else ""
        return [(self._render(messages, open_turn=False), False), (before, False)]

    def _render(self, messages: list[dict[str, Any]], *, open_turn: bool) -> str:
        if self._template is None:
            raise DataError("the model has no chat template; use 'text' or 'prompt'/'completion' rows")
        try:
            return self._template.render(messages=messages, add_generation_prompt=open_turn, **self._about)
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses these messages: {error}") from error


def _row_tokens(row: Row, lengths: Sequence[int]) -> RowTokens:
    """From the lengths of the row's parts."""
    first, *rest = lengths
    if isinstance(row, ChatRow):
        return RowTokens(first, before_loss=rest[0], is_text=False)
    is_text = isinstance(row, TextRow)
    return RowTokens(first + sum(rest) + _ONE_END_TOKEN, before_loss=0 if is_text else first, is_text=is_text)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of about PIECE_CHARACTERS, cut where a word begins if one does."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.find(" ", start + PIECE_CHARACTERS, start + 2 * PIECE_CHARACTERS)
        end = end if end != -1 else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says; for counting, it is only its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _about(folder: Path) -> dict[str, Any]:
    """Special tokens by name, for the template, and the template itself if it is in tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    about = {}
    for name, value in config.items():
        if name.endswith("_token") and not name.startswith("add_"):
            about[name] = value["content"] if isinstance(value, dict) else value
    return {**about, "chat_template": config.get("chat_template")}


def _template(folder: Path, about: dict[str, Any]) -> Template | None:
    source = about.pop("chat_template")
    path = folder / "chat_template.jinja"
    if path.exists():
        source = path.read_text(encoding="utf-8")
    if isinstance(source, list):  # several, by name
        source = next((each["template"] for each in source if each["name"] == "default"), None)
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda format: datetime.now().strftime(format))
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment.from_string(source)


def _refuse(message: str) -> None:
    raise TemplateError(message)

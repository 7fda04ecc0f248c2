"""What is in a training file, as a job would see it: wrong rows, tokens, sequences, tokens that would be cut.

A file of up to COUNTED_BYTES is counted whole. Of a larger one every k-th row is, spread over the whole file, and sums
are scaled by the rows: what is 1000 of 10,000 rows stands for ten times as much. Nothing is kept but counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jenga_core.errors import DataError
from jenga_core.service.estimates.tokens import RowTokens, TokenCounter
from jenga_core.training_rows import MAX_ROW_BYTES, Row, parse_row

COUNTED_BYTES = 64 * 2**20
ENCODED_AT_ONCE_BYTES = 4 * 2**20
MAX_ERRORS = 20
SHORTEST_TOKENS = 2
"""A sequence of one token has nothing to predict (finetuning/data.py)."""


@dataclass
class RowCounts:
    """Of one file. `counted_rows` of `rows` were encoded; all else but `rows` is scaled to the whole."""

    rows: int = 0
    counted_rows: int = 0
    tokens: int = 0
    """In sequences."""

    tokens_cut: int = 0
    """In rows, but in no sequence."""

    sequences: int = 0
    histogram: Counter[int] = field(default_factory=Counter)
    """Rows by the exponent of the least power of two that is not below their length in tokens."""

    wrong_rows: int = 0
    """Among those that were looked at."""

    errors: list[tuple[int, str]] = field(default_factory=list)
    """Row, counted from 1, and reason; the first MAX_ERRORS."""


def count_file(path: Path, counter: TokenCounter, *, context_length_tokens: int) -> RowCounts:
    """Read the file once. Raises nothing for wrong rows: they are counted."""
    counts = RowCounts()
    stride = max(1, -(-path.stat().st_size // COUNTED_BYTES))
    pending: list[tuple[int, Row]] = []
    pending_bytes = 0
    for number, line in _lines(path):
        counts.rows += 1
        if (counts.rows - 1) % stride:
            continue
        try:
            pending.append((number, parse_row(line)))
        except DataError as error:
            _note(counts, number, error)
            continue
        pending_bytes += len(line)
        if pending_bytes >= ENCODED_AT_ONCE_BYTES:
            _count(counts, pending, counter, context_length_tokens)
            pending_bytes = 0
    _count(counts, pending, counter, context_length_tokens)
    _scale(counts)
    return counts


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, by number from 1; one without an end is read in bounded pieces, which are refused."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES + 2), b""), start=1):
            if line.strip():
                yield number, line


def _count(counts: RowCounts, pending: list[tuple[int, Row]], counter: TokenCounter, context: int) -> None:
    try:
        counted = counter.count([row for _, row in pending])
    except DataError:
        counted = []
        for number, row in pending:  # one of them is wrong: which?
            try:
                counted += counter.count([row])
            except DataError as error:
                _note(counts, number, error)
    pending.clear()
    for tokens in counted:
        _add(counts, tokens, context)


def _add(counts: RowCounts, row: RowTokens, context: int) -> None:
    counts.counted_rows += 1
    counts.histogram[max(row.tokens - 1, 1).bit_length()] += 1
    if row.is_text:
        kept = row.tokens if row.tokens >= SHORTEST_TOKENS else 0
        counts.sequences += math.ceil(kept / context)
    else:
        kept = min(row.tokens, context) if max(row.before_loss, 1) < context else 0
        counts.sequences += kept > 0
    counts.tokens += kept
    counts.tokens_cut += row.tokens - kept


def _scale(counts: RowCounts) -> None:
    """From the rows that were counted to all of them; those that are wrong are not scaled up."""
    seen = counts.counted_rows + counts.wrong_rows
    if not seen or seen >= counts.rows:
        return
    scale = counts.rows / seen
    counts.tokens, counts.tokens_cut = round(counts.tokens * scale), round(counts.tokens_cut * scale)
    counts.sequences = round(counts.sequences * scale)
    counts.histogram = Counter({length: round(rows * scale) for length, rows in counts.histogram.items()})


def _note(counts: RowCounts, number: int, error: DataError) -> None:
    counts.wrong_rows += 1
    if len(counts.errors) < MAX_ERRORS:
        counts.errors.append((number, error.message))

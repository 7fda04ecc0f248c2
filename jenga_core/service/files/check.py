"""Is an uploaded file one that can be trained on? Row by row, at constant memory."""

from __future__ import annotations

from pathlib import Path

from jenga_core.training_rows import MAX_ROW_BYTES, read_rows


def count_rows(path: Path) -> int:
    """How many rows the file has. Raises DataError at the first one that is wrong, naming it."""
    with path.open("rb") as file:
        # A file without line ends must not become one string: two bytes over the limit are enough to be refused.
        lines = iter(lambda: file.readline(MAX_ROW_BYTES + 2), b"")
        return sum(1 for _ in read_rows(lines))

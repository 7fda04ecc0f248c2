"""Tables for people and for pipes."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

PIPE_COLUMNS = 160
"""Width of a table that is not shown on a terminal: wide enough to cut nothing."""


def table(identity: str, *others: str) -> Table:
    """An empty table; its first column, the one that people copy, is never cut."""
    return Table(Column(identity, no_wrap=True), *others, box=None, pad_edge=False)


def show(rows: Table) -> None:
    """Print to stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    console.print(rows)

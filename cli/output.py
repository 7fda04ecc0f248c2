"""What a command prints: a table or a sentence for people, or with `--json` one JSON document for programs.

Results go to stdout, everything else (progress, warnings, errors) to stderr, so that a pipe gets results alone.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

PIPE_COLUMNS = 160
"""Width of a table that is not shown on a terminal: wide enough to cut nothing."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead, for programs.")]


def table(identity: str, *others: str) -> Table:
    """An empty table; its first column, the one that people copy, is never cut. A name that ends in `>` is flushed
    right, as numbers are."""
    columns = [
        Column(name.rstrip(">"), justify="right", no_wrap=True) if name.endswith(">") else Column(name)
        for name in others
    ]
    return Table(Column(identity, no_wrap=True), *columns, box=None, pad_edge=False, header_style="dim")


def show(rows: Table) -> None:
    """Print a table to stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    console.print(rows)


def emit(value: Any) -> None:
    """Print a JSON document to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def emit_line(value: Any) -> None:
    """Print one JSON object as one line, for commands that print many as time goes by."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def say(text: str) -> None:
    """A sentence for people, on stderr."""
    Console(file=sys.stderr, soft_wrap=True, highlight=False).print(text, markup=False)

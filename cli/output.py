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


class Rows:
    """What a table says; `show` gives it its form.

    The first column, the one that people copy, is never cut. Marks behind the name of another: `>` flushed right, as
    numbers are, and never cut; `!` never cut; `?` left out where there is no room for it. What has none of them goes on
    in the next line.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """One cell for each column."""
        self._rows.append(cells)

    @property
    def is_empty(self) -> bool:
        """Whether there is no row."""
        return not self._rows

    def fitted(self, console: Console) -> Table:
        """Without the columns that there is no room for, the last ones first; if that is not enough, narrower ones."""
        kept = list(range(len(self._names)))
        spare = [index for index in kept if "?" in self._names[index]]
        anything = console.options.update(max_width=sys.maxsize)
        while console.measure(self._table(kept), options=anything).maximum > console.width:
            if not spare:
                return self._table(kept, gap=1)
            kept.remove(spare.pop())
        return self._table(kept)

    def _table(self, kept: list[int], gap: int = 2) -> Table:
        columns = [_column(self._names[index], cut=index > 0) for index in kept]
        form = Table(*columns, box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
        for cells in self._rows:
            form.add_row(*(cells[index] for index in kept))
        return form


def _column(name: str, *, cut: bool) -> Column:
    header = name.rstrip(">!?")
    marks = name[len(header) :]
    never_cut = not cut or ">" in marks or "!" in marks
    return Column(header, justify="right" if ">" in marks else "left", no_wrap=never_cut, overflow="fold")


def table(identity: str, *others: str) -> Rows:
    """An empty table of these columns."""
    return Rows((identity, *others))


def show(rows: Rows, *, none: str = "") -> None:
    """Print a table to stdout; one without rows is no table, and `none` says on stderr what would make one."""
    if rows.is_empty and none:
        say(none)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)
    console.print(rows.fitted(console))


def emit(value: Any) -> None:
    """Print a JSON document to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def emit_line(value: Any) -> None:
    """Print one JSON object as one line, for commands that print many as time goes by."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def say(text: str) -> None:
    """A sentence for people, on stderr."""
    Console(file=sys.stderr, soft_wrap=True, highlight=False).print(text, markup=False)

"""The live lines of a running job: a bar, loss, memory and speed at the bottom, events scrolling by above.

    ftjob-6f1c  running, finetune
    ━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━  412/900  46%  1 h 14 min, 1 h 27 min left
    loss 1.833  ▇▆▆▄▃▃▂▂▁▁  held-out 1.881   9,664 tokens/s   activations 10.9 GiB, 5.0x less than dense

Where the output is no terminal there are no live lines, only the events. `jenga watch` fills a Snapshot from the
service, `jenga train` from the trainer itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli import amounts

BARS = "▁▂▃▄▅▆▇█"
CURVE_STEPS = 24
REFRESHES_PER_SECOND = 4
ECHO_COLUMNS = 4
"""Left free at the end of the last line: the terminal echoes `^C` there, and a line more would stay behind."""

_STYLES = {"warn": "yellow", "error": "red"}
_STATES = {"succeeded": "green", "failed": "red", "running": "blue", "paused": "yellow", "cancelling": "yellow"}


@dataclass
class Snapshot:
    """What is known of a job now. Bytes and nats per token; None is not known yet."""

    state: str = "queued"
    stage: str = ""
    step: int = 0
    total_steps: int | None = None
    losses: list[float] = field(default_factory=list)
    """Training losses of the steps so far."""

    held_out: float | None = None
    tokens_per_second: float | None = None
    activation_bytes: int | None = None
    dense_activation_bytes: int | None = None
    seconds_left: float | None = None
    first_step: int = 0
    first_step_at: float | None = None
    """When the first step was done, in seconds since 1970; what the bar shows as elapsed begins there."""

    remark: str = ""
    """Why it waits, or why nothing new is known."""


class Display:
    """A context manager; `update` what is shown, `tell` what happened."""

    def __init__(self, title: str, console: Console, *, quiet: bool = False) -> None:
        self._title = title
        self._console = console
        self._quiet = quiet
        self._shown = Snapshot()
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether there are live lines: the output is a terminal."""
        return self._live.is_started

    def update(self, snapshot: Snapshot) -> None:
        """Show this from the next refresh on."""
        self._shown = snapshot

    def tell(self, at: float, message: str, level: str = "info") -> None:
        """A line that stays, above the live ones. `at` is in seconds since 1970."""
        if not self._quiet:
            line = event_line(at, message, level)
            self._console.print(line, style=_STYLES.get(level), markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        shown = self._shown
        head = Text.assemble(
            (self._title, "bold"), "  ", (shown.state, _STATES.get(shown.state, "")),
            f", {shown.stage.replace('_', ' ')}" if shown.stage else "", (f"  {shown.remark}", "yellow"),
            no_wrap=True, overflow="ellipsis",
        )  # fmt: skip
        numbers = Text("   ".join(_numbers(shown)), no_wrap=True, overflow="ellipsis")
        return Group(head, self._bar(shown), Padding(numbers, (0, ECHO_COLUMNS, 0, 0)))

    def _bar(self, shown: Snapshot) -> RenderableType:
        """The bar takes what its numbers leave of the line."""
        elapsed = f"  {amounts.duration(time.time() - shown.first_step_at)}" if shown.first_step_at else ""
        total = shown.total_steps
        counted = f"{shown.step}/{total}  {shown.step / total:.0%}" if total else "no step yet"
        left = f", {amounts.duration(shown.seconds_left)} left" if shown.seconds_left else ""
        line = Table.grid(expand=True, padding=(0, 2, 0, 0))
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        bar = ProgressBar(total=total or 1, completed=shown.step if total else 0, pulse=not total)
        line.add_row(bar, f"{counted}{elapsed}{left}")
        return line


def event_line(at: float, message: str, level: str = "info") -> str:
    """An event as `watch`, `train` and `logs` print it: the local time, and what is no mere news marked so."""
    mark = "" if level == "info" else f"{level.upper()}: "
    return f"{amounts.clock(at)}  {mark}{message}"


def _numbers(shown: Snapshot) -> list[str]:
    """The third line, in the order in which people look for things."""
    parts = []
    if shown.losses:
        parts.append(f"loss {shown.losses[-1]:.3f}  {curve(shown.losses)}")
    if shown.held_out is not None:
        parts.append(f"held-out {shown.held_out:.3f}")
    if shown.tokens_per_second:
        parts.append(f"{shown.tokens_per_second:,.0f} tokens/s")
    if shown.activation_bytes:
        words = amounts.compared(shown.activation_bytes, shown.dense_activation_bytes)
        parts.append(f"activations {amounts.size(shown.activation_bytes)}" + (f", {words} than dense" if words else ""))
    return parts or [""]


def curve(values: Sequence[float], steps: int = CURVE_STEPS) -> str:
    """The values as a line of bars, the means of neighbours where there are more than `steps`."""
    count = min(steps, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BARS[round((value - low) / (high - low or 1) * (len(BARS) - 1))] for value in means)


def outcome(snapshot: Snapshot, model: Any) -> str:
    """One sentence about a job that succeeded."""
    parts = [f"{model}: {amounts.many(snapshot.step, 'step')}"]
    if snapshot.losses:
        parts.append(f"train loss {snapshot.losses[-1]:.3f}")
    if snapshot.held_out is not None:
        parts.append(f"held-out loss {snapshot.held_out:.3f}")
    return ", ".join(parts)

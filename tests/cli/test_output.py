"""Tables on terminals of every width."""

from __future__ import annotations

import pytest
from rich.console import Console

from cli.output import table

JOB = "ftjob-qPW5sKAkVQSn8crq1zcpXNiL"


def lines(width: int) -> list[str]:
    """A job as `jenga list` shows it."""
    rows = table("job", "model", "state!", "stage", "step>", "activations>?", "created!?")
    rows.add_row(JOB, "smollm2-135m", "succeeded", "no. 1 in the queue", "412/900", "115 MiB", "2026-07-07 12:12")
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(rows.fitted(console))
    return shown.get().splitlines()


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (130, ["job", "model", "state", "stage", "step", "activations", "created"]),
        (104, ["job", "model", "state", "stage", "step", "activations"]),
        (90, ["job", "model", "state", "stage", "step"]),
        (78, ["job", "model", "state", "stage", "step"]),
    ],
)
def test_a_narrow_terminal_is_spared_what_matters_least(width: int, columns: list[str]) -> None:
    head, *rest = lines(width)
    assert head.split() == columns
    assert all(len(line) <= width for line in [head, *rest])
    shown = " ".join(" ".join(rest).split())
    for cell in (JOB, "smollm2-135m", "succeeded", "412/900"):
        assert cell in shown


def test_text_goes_on_in_the_next_line_where_there_is_no_room() -> None:
    _, first, second = lines(78)
    assert "no. 1 in" in first and "queue" in second

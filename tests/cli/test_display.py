"""The live lines of a job, and numbers in words."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from cli import amounts
from cli.display import ECHO_COLUMNS, Display, Snapshot, curve, outcome


def test_a_curve_goes_from_low_to_high() -> None:
    assert curve([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert curve([5.0]) == "▁"
    assert curve([1, 1, 1]) == "▁▁▁"


def test_a_long_curve_shows_means_of_neighbours() -> None:
    assert curve([0, 2, 7, 9], steps=2) == "▁█"
    assert len(curve(list(range(1000)))) == 24


def test_everything_known_fits_a_terminal_of_a_hundred_columns() -> None:
    console = Console(width=100, force_terminal=True, color_system=None)
    display = Display("ftjob-1", console)
    display.update(
        Snapshot(
            state="running",
            stage="train_predictors",
            step=3,
            total_steps=12,
            losses=[2.0, 1.5],
            held_out=1.8,
            tokens_per_second=9663.7,
            activation_bytes=11_700_000_000,
            dense_activation_bytes=58_300_000_000,
            seconds_left=75,
            first_step_at=time.time() - 30,
        )
    )
    with console.capture() as shown:
        console.print(display._render())
    head, bar, numbers = shown.get().splitlines()
    assert head.strip() == "ftjob-1  running, train predictors"
    assert bar.rstrip().endswith("3/12  25%  30 s, 1 min 15 s left") and len(bar) <= 100
    assert numbers.rstrip().split("   ") == [
        "loss 1.500  █▁", "held-out 1.800", "9,664 tokens/s", "activations 10.9 GiB, 5.0x less than dense",
    ]  # fmt: skip


def test_what_is_unknown_is_left_out() -> None:
    console = Console(width=100, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(Display("ftjob-1", console)._render())
    assert shown.get().splitlines()[1].rstrip().endswith("no step yet")
    assert "loss" not in shown.get() and "None" not in shown.get()


def test_without_a_terminal_only_events_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("ftjob-1", Console()) as display:
        assert not display.is_live
        display.update(Snapshot(step=3, total_steps=12))
        display.tell(0, "[red]an event", "warn")  # markup in a message is text
    assert capsys.readouterr().out.endswith("  WARN: [red]an event\n")


def test_the_last_line_leaves_room_for_the_echo_of_ctrl_c() -> None:
    console = Console(width=60, force_terminal=True, color_system=None)
    display = Display("ftjob-1", console)
    display.update(Snapshot(losses=[2.0] * 30, held_out=1.8, tokens_per_second=9663.7, activation_bytes=11_700_000_000))
    with console.capture() as shown:
        console.print(display._render())
    assert len(shown.get().splitlines()[-1].rstrip()) == 60 - ECHO_COLUMNS


def test_the_outcome_in_a_sentence() -> None:
    snapshot = Snapshot(step=12, losses=[2.0, 1.25], held_out=1.5)
    assert outcome(Snapshot(step=1), "adapter") == "adapter: 1 step"
    assert outcome(snapshot, "adapter") == "adapter: 12 steps, train loss 1.250, held-out loss 1.500"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (640_300_000, "611 MiB"),
        (80 * 2**30, "80 GiB"),
        (None, "-"),
    ],
)
def test_sizes(count: float | None, words: str) -> None:
    assert amounts.size(count) == words


@pytest.mark.parametrize(
    ("ours", "theirs", "words"), [(1, 5.3, "5.3x less"), (6, 5, "1.2x more"), (100, 101, "the same"), (None, 1, "")]
)
def test_comparisons(ours: float | None, theirs: float, words: str) -> None:
    assert amounts.compared(ours, theirs) == words


@pytest.mark.parametrize(("seconds", "words"), [(-3, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (3720, "1 h 2 min")])
def test_durations(seconds: float, words: str) -> None:
    assert amounts.duration(seconds) == words

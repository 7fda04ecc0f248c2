"""Numbers and times as people read them."""

from __future__ import annotations

from datetime import datetime

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(count: float | None) -> str:
    """Binary units, as memory is sold, three digits: 640 MiB, 1.28 GiB; an unknown amount is a dash."""
    if count is None:
        return "-"
    unit = 0
    while count >= 1023.5 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if unit == 0 else f"{float(f'{count:.3g}'):g} {UNITS[unit]}"


def compared(ours: float | None, theirs: float | None) -> str:
    """`5.3x less`, `1.2x more` or, within 2 %, `the same`, of ours against theirs; empty where one is unknown."""
    if not ours or not theirs:
        return ""
    ratio = theirs / ours
    if abs(ratio - 1) < 0.02:
        return "the same"
    return f"{ratio:.1f}x less" if ratio > 1 else f"{1 / ratio:.1f}x more"


def many(count: int, name: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """75 is `1 min 15 s`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def loss(value: float | None) -> str:
    """Three digits behind the point, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def clock(seconds: float) -> str:
    """The local time of day."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


def date(seconds: float) -> str:
    """The local date."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def day(seconds: float) -> str:
    """The local date and time, to the minute."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")

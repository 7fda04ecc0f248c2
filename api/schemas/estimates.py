"""The answer to "what would this job be?": ours alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from api.schemas.bodies import Answer
from jenga_core.service.estimates.estimate import Fit, Seconds, Setting
from jenga_core.service.estimates.rows import RowCounts


class WrongRow(Answer):
    """A row that cannot be trained on."""

    row: int
    """Counted from 1; 0 for the file as a whole."""

    message: str


class LengthBin(Answer):
    """Rows of about one length, before they are split or cut."""

    from_tokens: int
    to_tokens: int
    rows: int


class SecondsRange(Answer):
    """Predicted time of training."""

    low: float
    expected: float
    high: float


class MemorySetting(Answer):
    """Predicted peak memory of one training step."""

    setting: str
    """`as asked`, or another to compare with."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int
    by_kind: dict[str, int]
    """They sum to `expected_bytes`."""
    host_bytes: int = 0
    """What waits in the host's memory meanwhile, with `offload`."""


class DeviceFit(Answer):
    """Whether the job fits a device of the fleet."""

    id: str
    name: str
    memory_bytes: int
    fits: bool
    longest_context_tokens: int
    """That would fit with these settings; 0 if none does."""


class EstimateObject(Answer):
    """A dry run: nothing was written."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    valid: bool
    """A job made of this would be accepted."""

    errors: list[WrongRow]
    """The first twenty."""

    rows: int
    rows_counted: int
    """Rows whose tokens were counted; fewer than `rows` in a large file, whose counts are scaled."""

    tokens: int
    tokens_cut: int
    """Beyond the context of chat and completion rows; texts are split, not cut."""

    sequences: int
    length_histogram: list[LengthBin]
    steps: int
    seconds: SecondsRange | None
    """null while no earlier job tells how fast this one would be."""

    memory: list[MemorySetting]
    devices: list[DeviceFit]
    advice: str | None
    """What to change when no GPU is large enough."""

    @classmethod
    def of(
        cls,
        counts: RowCounts,
        errors: Sequence[tuple[int, str]],
        *,
        steps: int,
        seconds: Seconds | None,
        settings: Sequence[Setting],
        fits: Sequence[Fit],
        advice: str | None,
    ) -> Self:
        """From what was counted and computed."""
        return cls(
            valid=not errors,
            errors=[WrongRow(row=row, message=message) for row, message in errors],
            rows=counts.rows,
            rows_counted=counts.counted_rows,
            tokens=counts.tokens,
            tokens_cut=counts.tokens_cut,
            sequences=counts.sequences,
            length_histogram=[
                LengthBin(from_tokens=2 ** (power - 1) + 1 if power > 1 else 1, to_tokens=2**power, rows=rows)
                for power, rows in sorted(counts.histogram.items())
            ],
            steps=steps,
            seconds=SecondsRange(**vars(seconds)) if seconds else None,
            memory=[
                MemorySetting(
                    setting=each.name,
                    low_bytes=each.estimate.low_bytes,
                    expected_bytes=each.estimate.expected_bytes,
                    high_bytes=each.estimate.high_bytes,
                    by_kind=dict(each.estimate.by_kind),
                    host_bytes=each.estimate.host_bytes,
                )
                for each in settings
            ],
            devices=[
                DeviceFit(
                    id=fit.device.id,
                    name=fit.device.name,
                    memory_bytes=fit.device.memory_bytes,
                    fits=fit.fits,
                    longest_context_tokens=fit.longest_context_tokens,
                )
                for fit in fits
            ],
            advice=advice,
        )

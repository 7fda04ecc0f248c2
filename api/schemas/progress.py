"""What a job measured while it ran: ours alone, in lists like OpenAI's. Units are in the names."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict

from api.schemas.bodies import Answer
from jenga_core.service.db.models import JobSelection


class _FromRow(Answer):
    model_config = ConfigDict(from_attributes=True)


class MetricObject(_FromRow):
    """One optimizer step. Step 0 is before training. Losses are nats per token."""

    step: int
    train_loss: float | None
    valid_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    created_at: float


class MemoryObject(_FromRow):
    """One phase: `dense_reference` is a dense step of the same model and batch, `finetune` the job's own."""

    phase: str
    states_bytes: int
    activation_bytes: int
    predictor_bytes: int
    other_bytes: int
    peak_bytes: int
    device: str
    created_at: float


class SelectionObject(Answer):
    """Which blocks stayed involved at one step, in the first sequence of the batch."""

    step: int
    entry_layer: int | None
    """The layer that chose; where every layer does, the first of them. None for jobs that did not record it."""

    num_blocks: int
    kept_fraction: list[float]
    """Share of the tokens involved, layer by layer."""

    spans: list[dict[str, Any]]
    """`{"first_layer", "last_layer", "blocks"}`; a layer in no span keeps all."""

    created_at: float

    @classmethod
    def of(cls, row: JobSelection) -> Self:
        """The public form of a row."""
        return cls(
            step=row.step,
            entry_layer=row.kept_blocks.get("entry_layer"),
            num_blocks=row.num_blocks,
            kept_fraction=row.kept_fraction["layers"],
            spans=row.kept_blocks["spans"],
            created_at=row.created_at,
        )

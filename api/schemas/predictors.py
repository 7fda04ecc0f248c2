"""Predictors of block scores: ours alone, in a list like OpenAI's."""

from __future__ import annotations

from typing import Any, Literal, Self

from api.schemas.bodies import Answer
from jenga_core.service.db.models import PredictorEntry


class PredictorObject(Answer):
    """Predictors that a job of the team made, and that its next jobs on the same model and settings reuse."""

    id: str
    object: Literal["predictor"] = "predictor"
    created_at: int
    base_model: str
    fingerprint: str
    """Of the base model."""

    job_id: str
    """The job that made them."""

    settings: dict[str, Any]
    """What they depend on beside the base model."""

    report: dict[str, Any]
    """`parameters`, `parameter_fraction` of the base model, and in `layers` recall and precision on held-out text."""

    @classmethod
    def of(cls, row: PredictorEntry) -> Self:
        """The public form of a row."""
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            base_model=row.base_model,
            fingerprint=row.fingerprint,
            job_id=row.job_id,
            settings=row.settings,
            report=row.report,
        )

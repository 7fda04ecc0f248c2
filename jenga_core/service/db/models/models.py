"""Base models that jobs may name, and what jobs made for them: adapters and predictors."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from jenga_core.service.db.base import Base


class BaseModelEntry(Base):
    """A pretrained model on this installation's disk, put there by `jenga models add`."""

    __tablename__ = "base_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    """The name that jobs use, e.g. `smollm2-135m` or `org/name`."""

    source: Mapped[str]
    """Where the weights came from."""

    folder: Mapped[str]
    """Folder name under `DATA_DIR/models` (safetensors, config, tokenizer)."""

    model_type: Mapped[str]
    """Architecture, as transformers names it."""

    num_hidden_layers: Mapped[int]
    context_length_tokens: Mapped[int]
    """The longest context the model was trained for."""

    parameters: Mapped[int] = mapped_column(BigInteger)
    fingerprint: Mapped[str]
    """SHA-256 over the weights; artifacts made for this model carry it."""

    created_at: Mapped[float]


class FineTunedModel(Base):
    """An adapter that a job made."""

    __tablename__ = "fine_tuned_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`ft:<base>:<team>:<suffix>:<job>`"""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    base_model: Mapped[str]
    created_at: Mapped[float]


class PredictorEntry(Base):
    """Predictors of block scores, on disk: for one base model and one kind of settings, reused by the team's jobs."""

    __tablename__ = "predictors"
    __table_args__ = (Index(None, "team_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    """`pred-...`"""

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id"))
    """They were trained on the team's text, and serve nobody else."""

    base_model: Mapped[str]
    fingerprint: Mapped[str]
    """Of the base model."""

    folder: Mapped[str] = mapped_column(unique=True)
    """Below the data folder."""

    settings: Mapped[dict[str, Any]]
    """What they depend on: layers, block_tokens, column, keep_fraction, context length, rope and how they were
    trained."""

    report: Mapped[dict[str, Any]]
    """parameters, parameter_fraction, and by layer recall, precision and more."""

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    """The job that made them."""

    created_at: Mapped[float]

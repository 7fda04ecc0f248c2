"""Base models that jobs may name, and the adapters that jobs made."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey
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

"""Every table. Importing this package registers them all on `Base.metadata`, which is what migrations compare with."""

from jenga_core.service.db.models.accounts import ApiKey, Team
from jenga_core.service.db.models.files import StoredFile
from jenga_core.service.db.models.jobs import Job, JobCheckpoint, JobEvent, JobMemory, JobMetric, JobSelection
from jenga_core.service.db.models.models import BaseModelEntry, FineTunedModel, PredictorEntry

__all__ = [
    "ApiKey",
    "BaseModelEntry",
    "FineTunedModel",
    "Job",
    "JobCheckpoint",
    "JobEvent",
    "JobMemory",
    "JobMetric",
    "JobSelection",
    "PredictorEntry",
    "StoredFile",
    "Team",
]

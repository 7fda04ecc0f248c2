"""Every table. Importing this package registers them all on `Base.metadata`, which is what migrations compare with."""

from jenga_core.service.db.models.accounts import ApiKey, AuditEntry, JobRequest, Team
from jenga_core.service.db.models.files import StoredFile, Upload, UploadPart
from jenga_core.service.db.models.fleet import Device, DeviceLease, TeamUsage, Worker
from jenga_core.service.db.models.jobs import Job, JobCheckpoint, JobEvent, JobMemory, JobMetric, JobSelection
from jenga_core.service.db.models.models import BaseModelEntry, FineTunedModel, PredictorEntry
from jenga_core.service.db.models.webhooks import WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "AuditEntry",
    "BaseModelEntry",
    "Device",
    "DeviceLease",
    "FineTunedModel",
    "Job",
    "JobCheckpoint",
    "JobEvent",
    "JobMemory",
    "JobMetric",
    "JobRequest",
    "JobSelection",
    "PredictorEntry",
    "StoredFile",
    "Team",
    "TeamUsage",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
]

"""What a Prometheus server scrapes: counted in the database at the moment of the scrape, for all teams together."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Device, DeviceLease, Job, StoredFile, WebhookDelivery, Worker
from jenga_core.service.db.session import Database
from jenga_core.service.fleet.registration import is_online
from jenga_core.service.jobs.state import JobState


class DatabaseCollector(Collector):
    """Gauges of jobs, files, devices and webhooks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One scrape, in one transaction."""
        with self._database.reading() as session:
            yield _jobs(session)
            yield _gauge("jenga_oldest_queued_job_seconds", "Age of the job that waits longest", _oldest(session))
            stored = session.scalar(select(func.sum(StoredFile.bytes)))
            yield _gauge("jenga_stored_bytes", "Bytes of all files", float(stored or 0))
            workers = select(func.count()).select_from(Worker).where(is_online())
            yield _gauge("jenga_workers_online", "Workers whose heartbeat is fresh", _count(session, workers))
            devices = select(func.count()).select_from(Device).join(Worker, Worker.id == Device.worker_id)
            yield _gauge("jenga_devices", "Devices of those workers", _count(session, devices.where(is_online())))
            leases = select(func.count()).select_from(DeviceLease)
            yield _gauge("jenga_devices_held", "Devices that a job holds", _count(session, leases))
            waiting = select(func.count()).where(WebhookDelivery.next_attempt_at.is_not(None))
            yield _gauge("jenga_webhooks_waiting", "Webhook deliveries to be made", _count(session, waiting))


def _jobs(session: Session) -> GaugeMetricFamily:
    counted = dict.fromkeys(JobState, 0)
    for state, count in session.execute(select(Job.state, func.count()).group_by(Job.state)):
        counted[JobState(state)] = count
    family = GaugeMetricFamily("jenga_jobs", "Jobs by state", labels=["state"])
    for state, count in counted.items():
        family.add_metric([state], count)
    return family


def _oldest(session: Session) -> float:
    oldest = select(database_now() - func.min(Job.created_at)).where(Job.state == JobState.QUEUED)
    return float(session.scalar(oldest) or 0.0)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)


def _count(session: Session, statement: object) -> float:
    return float(session.scalar(statement) or 0)  # type: ignore[call-overload]

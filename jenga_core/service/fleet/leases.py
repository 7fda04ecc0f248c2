"""Whole devices, held by jobs. The primary key of `device_leases` is the device, so no device is ever held twice.

A device is held for as long as its job is: `lifecycle` calls `hold` in the transaction that claims and `release` in the
one that ends, requeues, pauses or takes back. Releasing charges the team for the time.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import DeviceLease, Job
from jenga_core.service.fleet import usage


def hold(session: Session, job_id: str, token: str, devices: Sequence[str]) -> None:
    """Take these devices. Raises IntegrityError when one of them is held."""
    session.add_all(DeviceLease(device_uuid=uuid, job_id=job_id, token=token, since=database_now()) for uuid in devices)
    session.flush()


def release(session: Session, job_id: str) -> None:
    """Let go of what the job holds, and charge its team."""
    statement = delete(DeviceLease).where(DeviceLease.job_id == job_id).returning(DeviceLease.since)
    held_since = list(session.scalars(statement))
    if held_since:
        now = usage.clock(session)
        seconds = sum(max(now - since, 0.0) for since in held_since)
        counted = update(Job).where(Job.id == job_id).values(gpu_seconds=Job.gpu_seconds + seconds)
        usage.charge(session, session.scalars(counted.returning(Job.team_id)).one(), seconds)


def held_by(session: Session, job_id: str) -> list[str]:
    """The devices of a job."""
    statement = select(DeviceLease.device_uuid).where(DeviceLease.job_id == job_id)
    return list(session.scalars(statement.order_by(DeviceLease.device_uuid)))

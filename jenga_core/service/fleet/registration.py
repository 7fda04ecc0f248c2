"""Workers sign on, tell what devices they have, beat, and sign off.

All times are the database's. A worker that has not beaten for LOST_SECONDS is lost: it is offered no job, and what it
holds is taken back by the reaper when the jobs' own leases run out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Device, DeviceLease, Worker

BEAT_SECONDS = 10.0
LOST_SECONDS = 35.0
FORGET_SECONDS = 24 * 3600.0
"""A worker that has been silent for so long is struck off, with its devices."""


@dataclass(frozen=True)
class Process:
    """Something that computes on a GPU and is no job's."""

    pid: int | None
    """None where the driver hides it, as in a container."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Report:
    """A device as its host sees it."""

    uuid: str
    kind: str
    name: str
    memory_bytes: int
    memory_used_bytes: int = 0
    foreign_processes: Sequence[Process] = field(default=())


def sign_on(
    session: Session,
    worker_id: str,
    *,
    host: str,
    pid: int,
    versions: dict[str, Any],
    memory_bytes: int | None = None,
) -> None:
    """A worker has started on a host with so much memory. Forgets those that have been silent for a day."""
    session.add(
        Worker(
            id=worker_id,
            host=host,
            pid=pid,
            versions=versions,
            memory_bytes=memory_bytes,
            started_at=database_now(),
            heartbeat_at=database_now(),
            draining=False,
        )
    )
    session.flush()
    silent = select(Worker.id).where(Worker.heartbeat_at < database_now() - FORGET_SECONDS)
    held = select(DeviceLease.device_uuid)
    session.execute(delete(Device).where(Device.worker_id.in_(silent), Device.uuid.not_in(held)))
    session.execute(delete(Worker).where(Worker.id.in_(silent), Worker.id.not_in(select(Device.worker_id))))


def beat(session: Session, worker_id: str, reports: Sequence[Report], *, draining: bool = False) -> bool:
    """The worker lives, and this is what its devices look like. False when it has been struck off.

    One that is `draining` finishes what it has and takes nothing new. A device that an online worker of the same host
    reports already stays with that one.
    """
    alive = update(Worker).where(Worker.id == worker_id).values(heartbeat_at=database_now(), draining=draining)
    if session.scalars(alive.returning(Worker.id)).one_or_none() is None:
        return False
    for report in sorted(reports, key=lambda each: each.uuid):
        device = session.get(Device, report.uuid)
        if device is None:
            device = Device(uuid=report.uuid, worker_id=worker_id)
            session.add(device)
        elif device.worker_id != worker_id and not _takes_jobs(session, device.worker_id):
            device.worker_id = worker_id
        device.kind, device.name = report.kind, report.name
        device.memory_bytes, device.memory_used_bytes = report.memory_bytes, report.memory_used_bytes
        device.foreign_processes = [asdict(process) for process in report.foreign_processes]
        session.flush()
    return True


def sign_off(session: Session, worker_id: str) -> None:
    """The worker has ended in good order: its devices are nobody's, and it is lost at once."""
    gone = {"draining": True, "heartbeat_at": database_now() - LOST_SECONDS}
    session.execute(update(Worker).where(Worker.id == worker_id).values(**gone))


def free_devices(session: Session) -> int:
    """How many devices of workers that take jobs are held by none."""
    statement = select(func.count()).select_from(Device).join(Worker, Worker.id == Device.worker_id)
    free = Device.uuid.not_in(select(DeviceLease.device_uuid))
    return session.scalars(statement.where(is_online(), ~Worker.draining, free)).one()


def is_online() -> ColumnElement[bool]:
    """Of Worker rows: it has beaten lately."""
    return Worker.heartbeat_at > database_now() - LOST_SECONDS


def _takes_jobs(session: Session, worker_id: str) -> bool:
    statement = select(Worker.id).where(Worker.id == worker_id, is_online(), ~Worker.draining)
    return session.scalars(statement).one_or_none() is not None

"""The fleet as people see it: workers and their devices, the queue, and what each team uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jenga_core.service.db.models import Device, DeviceLease, Job, Team, Worker
from jenga_core.service.fleet import placement, usage
from jenga_core.service.fleet.registration import is_online
from jenga_core.service.jobs.state import JobState

HELD = [state for state in JobState if state.is_held]


@dataclass(frozen=True)
class Holder:
    """Who holds a device."""

    job_id: str
    team_id: str


@dataclass(frozen=True)
class DeviceView:
    """A device and its holder."""

    id: str
    kind: str
    name: str
    memory_bytes: int
    memory_used_bytes: int
    held_by: Holder | None
    foreign_processes: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class WorkerView:
    """A worker and its devices."""

    id: str
    host: str
    state: Literal["online", "draining", "lost"]
    versions: dict[str, Any]
    memory_bytes: int | None
    heartbeat_at: float
    devices: Sequence[DeviceView]


@dataclass(frozen=True)
class QueueView:
    """A queued job's place."""

    job_id: str
    team_id: str
    position: int
    reason: str


@dataclass(frozen=True)
class TeamView:
    """What a team runs, wants and has used."""

    team_id: str
    name: str
    running: int
    queued: int
    gpu_seconds_decayed: float


@dataclass(frozen=True)
class Fleet:
    """Everything."""

    workers: Sequence[WorkerView]
    queue: Sequence[QueueView]
    teams: Sequence[TeamView]


def fleet(session: Session) -> Fleet:
    """The whole view, of all teams; whom to show what is the caller's matter."""
    return Fleet(workers=_workers(session), queue=_queue(session), teams=_teams(session))


def _workers(session: Session) -> list[WorkerView]:
    devices: dict[str, list[DeviceView]] = {}
    held = (
        select(Device, DeviceLease.job_id, Job.team_id)
        .outerjoin(DeviceLease, DeviceLease.device_uuid == Device.uuid)
        .outerjoin(Job, Job.id == DeviceLease.job_id)
        .order_by(Device.uuid)
    )
    for device, job_id, team_id in session.execute(held):
        view = DeviceView(
            id=device.uuid,
            kind=device.kind,
            name=device.name,
            memory_bytes=device.memory_bytes,
            memory_used_bytes=device.memory_used_bytes,
            held_by=None if job_id is None else Holder(job_id, team_id),
            foreign_processes=device.foreign_processes,
        )
        devices.setdefault(device.worker_id, []).append(view)
    rows = session.execute(select(Worker, is_online()).order_by(Worker.host, Worker.started_at)).all()
    return [
        WorkerView(
            id=worker.id,
            host=worker.host,
            state="lost" if not online else "draining" if worker.draining else "online",
            versions=worker.versions,
            memory_bytes=worker.memory_bytes,
            heartbeat_at=worker.heartbeat_at,
            devices=devices.get(worker.id, []),
        )
        for worker, online in rows
        if online or worker.id in devices  # one that left and whose devices have another reporter is history
    ]


def _queue(session: Session) -> list[QueueView]:
    queued = session.execute(select(Job.id, Job.team_id).where(Job.state == JobState.QUEUED))
    teams = {row.id: row.team_id for row in queued}
    places = placement.waiting(session, teams.keys())
    views = [QueueView(job_id, teams[job_id], place.position, place.reason) for job_id, place in places.items()]
    return sorted(views, key=lambda view: view.position)


def _teams(session: Session) -> list[TeamView]:
    used = usage.by_team(session)
    counted = select(Job.team_id, Job.state, func.count()).where(Job.state.in_([JobState.QUEUED, *HELD]))
    running: dict[str, int] = {}
    queued: dict[str, int] = {}
    for team_id, state, count in session.execute(counted.group_by(Job.team_id, Job.state)):
        into = queued if state == JobState.QUEUED else running
        into[team_id] = into.get(team_id, 0) + count
    return [
        TeamView(team.id, team.name, running.get(team.id, 0), queued.get(team.id, 0), used.get(team.id, 0.0))
        for team in session.scalars(select(Team).order_by(Team.name))
    ]

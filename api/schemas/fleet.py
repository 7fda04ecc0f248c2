"""The fleet: workers, devices, the queue, and each team's share. Other teams' jobs have no names here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from api.schemas.bodies import Answer
from jenga_core.service.fleet.repository import DeviceView, Fleet, WorkerView

SOMEBODY_ELSE = "another team"


class HolderObject(Answer):
    """Who holds a device; null for another team's."""

    job_id: str | None
    team_id: str | None


class DeviceObject(Answer):
    """A GPU, or the CPU of a host without one."""

    id: str
    kind: str
    name: str
    memory_bytes: int
    memory_used_bytes: int
    held_by: HolderObject | None
    foreign_processes: list[dict[str, Any]]
    """What computes there and is no job of this service."""


class WorkerObject(Answer):
    """A process that runs jobs."""

    id: str
    host: str
    state: Literal["online", "draining", "lost"]
    versions: dict[str, Any]
    memory_bytes: int | None
    """Of the host; null where it is not known."""
    heartbeat_at: int
    devices: list[DeviceObject]


class QueuedObject(Answer):
    """A place in the queue; ids are null for another team's."""

    job_id: str | None
    team_id: str | None
    position: int
    reason: str | None


class TeamShare(Answer):
    """What a team runs, wants and has used."""

    team_id: str | None
    name: str
    running: int
    queued: int
    gpu_seconds_decayed: float


class FleetObject(Answer):
    """All of it."""

    object: Literal["fleet"] = "fleet"
    workers: list[WorkerObject]
    queue: list[QueuedObject]
    teams: list[TeamShare]

    @classmethod
    def of(cls, fleet: Fleet, team_id: str, *, see_all: bool) -> Self:
        """What this team may see of it."""

        def mine(other: str) -> bool:
            return see_all or other == team_id

        return cls(
            workers=[_worker(worker, mine) for worker in fleet.workers],
            queue=[
                QueuedObject(
                    job_id=place.job_id if mine(place.team_id) else None,
                    team_id=place.team_id if mine(place.team_id) else None,
                    position=place.position,
                    reason=place.reason if mine(place.team_id) else None,
                )
                for place in fleet.queue
            ],
            teams=[
                TeamShare(
                    team_id=team.team_id if mine(team.team_id) else None,
                    name=team.name if mine(team.team_id) else SOMEBODY_ELSE,
                    running=team.running,
                    queued=team.queued,
                    gpu_seconds_decayed=round(team.gpu_seconds_decayed, 1),
                )
                for team in fleet.teams
            ],
        )


def _worker(worker: WorkerView, mine: Callable[[str], bool]) -> WorkerObject:
    return WorkerObject(
        id=worker.id,
        host=worker.host,
        state=worker.state,
        versions=worker.versions,
        memory_bytes=worker.memory_bytes,
        heartbeat_at=int(worker.heartbeat_at),
        devices=[_device(device, mine) for device in worker.devices],
    )


def _device(device: DeviceView, mine: Callable[[str], bool]) -> DeviceObject:
    held = device.held_by
    shown = held is not None and mine(held.team_id)
    return DeviceObject(
        id=device.id,
        kind=device.kind,
        name=device.name,
        memory_bytes=device.memory_bytes,
        memory_used_bytes=device.memory_used_bytes,
        held_by=None
        if held is None
        else HolderObject(job_id=held.job_id if shown else None, team_id=held.team_id if shown else None),
        foreign_processes=list(device.foreign_processes),
    )

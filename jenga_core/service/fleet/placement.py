"""The plan (plan.py) on the database: which job a host claims next, who has to give way, and why a job waits.

Everything is decided under one lock, taken for the length of the transaction: SQLite has one writer anyway, PostgreSQL
an advisory lock. Should somebody decide without it, the compare-and-set of the claim and the primary key of the leases
still keep every job and every device from being taken twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Device, DeviceLease, Job, Team, Worker
from jenga_core.service.fleet import usage
from jenga_core.service.fleet.plan import Plan, Slot, Waiter, could_ever, plan, room_for_jobs
from jenga_core.service.fleet.registration import is_online
from jenga_core.service.jobs.state import JobState

ADVISORY_LOCK = 0x6A656E6762
"""Of PostgreSQL; one beside the migrations' own."""


@dataclass(frozen=True)
class Choice:
    """A job to claim, and where."""

    job_id: str
    devices: Sequence[str]
    """Their uuids."""

    on_cpu: bool
    filler: bool


@dataclass(frozen=True)
class Waiting:
    """A queued job's place."""

    position: int
    """1 is next."""

    reason: str
    """Why it does not run yet, in words."""


def choose(session: Session, worker_id: str) -> Choice | None:
    """What this worker should claim now, in this transaction; asks fillers to give way where the head needs them.

    None when nothing that waits can start here.
    """
    _lock(session)
    made = _plan(session, here=worker_id)
    ask_to_give_way(session, made)
    for job_id, slots in made.starts.items():
        if slots[0].host == worker_id:
            devices = [slot.uuid for slot in slots]
            return Choice(job_id, devices, on_cpu=slots[0].is_cpu, filler=job_id in made.fillers)
    return None


def ask_to_give_way(session: Session, made: Plan) -> None:
    """Mark the plan's fillers; their supervisors see it at their next renewal."""
    if made.give_way:
        running = Job.id.in_(made.give_way) & (Job.state == JobState.RUNNING) & Job.give_way_at.is_(None)
        session.execute(update(Job).where(running).values(give_way_at=database_now()))


def waiting(session: Session, job_ids: Collection[str]) -> dict[str, Waiting]:
    """Place and reason of those of the jobs that are queued."""
    slots, may_start = _slots(session), _may_start(session)
    made = plan(_waiters(session), slots, usage.by_team(session), may_start=may_start)
    full = {team_id for team_id, left in may_start.items() if left <= 0}
    told = {}
    for position, waiter in enumerate(made.order, start=1):
        if waiter.job_id in job_ids:
            told[waiter.job_id] = Waiting(position, _reason(waiter, made, slots, full))
    return told


def host_room_bytes(session: Session, *, gpus: int, device_bytes: int = 0) -> int | None:
    """What a job may keep for each of its GPUs in the memory of the largest host that has so many GPUs of that size.

    Hosts that are away count. None: there is no such host, or somebody's memory is not known.
    """
    of_gpus = select(Worker.id, Worker.memory_bytes).join(Device, Device.worker_id == Worker.id)
    large = of_gpus.where(Device.kind == "cuda", Device.memory_bytes >= device_bytes)
    hosts = session.execute(large.group_by(Worker.id, Worker.memory_bytes).having(func.count() >= gpus)).all()
    sizes = [memory_bytes for _, memory_bytes in hosts]
    known = [size for size in sizes if size is not None]
    return room_for_jobs(max(known)) // gpus if known and len(known) == len(sizes) else None


def _plan(session: Session, *, here: str = "") -> Plan:
    return plan(_waiters(session), _slots(session), usage.by_team(session), here=here, may_start=_may_start(session))


def _may_start(session: Session) -> dict[str, int]:
    """How many more jobs each team with a limit may run."""
    held = [state for state in JobState if state.is_held]
    running = select(func.count()).select_from(Job).where(Job.team_id == Team.id, Job.state.in_(held)).scalar_subquery()
    limits = select(Team.id, Team.max_running_jobs - running).where(Team.max_running_jobs.is_not(None))
    return {team_id: left or 0 for team_id, left in session.execute(limits)}


def _waiters(session: Session) -> list[Waiter]:
    columns = (Job.id, Job.team_id, Job.created_at, Job.priority, Job.gpus, Job.memory_bytes, Job.host_bytes)
    return [Waiter(*row) for row in session.execute(select(*columns).where(Job.state == JobState.QUEUED))]


def _slots(session: Session) -> list[Slot]:
    """The devices of workers that take jobs."""
    statement = (
        select(Device, DeviceLease.job_id, Job.filler, Job.host_bytes, Worker.memory_bytes)
        .join(Worker, Worker.id == Device.worker_id)
        .outerjoin(DeviceLease, DeviceLease.device_uuid == Device.uuid)
        .outerjoin(Job, Job.id == DeviceLease.job_id)
        .where(is_online(), ~Worker.draining)
        .order_by(Device.uuid)
    )
    return [
        Slot(
            uuid=device.uuid,
            host=device.worker_id,
            memory_bytes=device.memory_bytes,
            is_cpu=device.kind == "cpu",
            is_foreign=bool(device.foreign_processes),
            job_id=job_id,
            filler=bool(filler),
            host_memory_bytes=host_memory_bytes,
            held_host_bytes=host_bytes or 0,
        )
        for device, job_id, filler, host_bytes, host_memory_bytes in session.execute(statement)
    ]


def _reason(waiter: Waiter, made: Plan, slots: Sequence[Slot], full: Collection[str]) -> str:
    if not slots:
        return "no worker is online"
    if waiter.team_id in full:
        return "its team runs as many jobs as it may; waits until one of them ends"
    by_host: dict[str, list[Slot]] = {}
    for slot in slots:
        by_host.setdefault(slot.host, []).append(slot)
    if not any(could_ever(waiter, devices) for devices in by_host.values()):
        return f"no worker that is online has {_wanted(waiter, slots)}"
    order = made.ahead[waiter.job_id]
    if waiter.job_id in made.starts:
        return f"{order}; a worker is about to take it"
    fitting = [slot for slot in slots if waiter.fits(slot)]
    busy = sum(slot.job_id is not None for slot in fitting)
    foreign = sum(slot.job_id is None and slot.is_foreign for slot in fitting)
    held = [
        f"{_of(count, len(fitting))} {how}"
        for count, how in ((busy, "busy"), (foreign, "held by processes that are no jobs of this service"))
        if count
    ]
    return f"{order}; waits for {_wanted(waiter, slots)}" + (": " + ", ".join(held) if held else "")


def _of(count: int, total: int) -> str:
    if count == total:
        return "the only one is" if total == 1 else f"all {total} are"
    return f"{count} of {total} {'is' if count == 1 else 'are'}"


def _wanted(waiter: Waiter, slots: Sequence[Slot]) -> str:
    wanted = "a free device" if waiter.gpus == 1 else f"{waiter.gpus} free devices of one host"
    if all(slot.is_cpu for slot in slots):
        return wanted
    if waiter.memory_bytes is not None:
        wanted += f" with {waiter.memory_bytes / 2**30:.1f} GiB"
    if waiter.host_bytes:
        wanted += f", and {waiter.gpus * waiter.host_bytes / 2**30:.1f} GiB of its host's memory"
    return wanted


def _lock(session: Session) -> None:
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))

"""Who is next, and where: a pure function of the queue, the devices and the teams' use.

Order. Higher priority band first. Inside a band the team that has used the least goes first, with its oldest job; that
job is then counted as `NOMINAL_SECONDS` of use, so that a team with thirty jobs and a team with one take turns.

Devices. A job gets whole devices of one host, with enough memory, the smallest that do. The first job in this order
that fits nowhere now, though it would fit an empty host, is the *head*. Jobs behind it may still start on what is free:
as *fillers*, which save and give way as soon as the head could start on their devices. So gaps are used, and the head
waits for a checkpoint at most. A device on which somebody else's process computes is left alone. A team that runs as
many jobs as it may is passed over.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NOMINAL_SECONDS = 600.0
"""Use that a place in the order counts for, per device, while nobody knows how long the job will take."""


@dataclass(frozen=True)
class Slot:
    """A device as the plan sees it."""

    uuid: str
    host: str
    """Id of the worker that reports it."""

    memory_bytes: int
    is_cpu: bool = False
    is_foreign: bool = False
    """A process that is no job's computes on it."""

    job_id: str | None = None
    """Who holds it."""

    filler: bool = False
    """Its holder gives way to the head."""


@dataclass(frozen=True)
class Waiter:
    """A queued job."""

    job_id: str
    team_id: str
    created_at: float
    priority: int = 0
    gpus: int = 1
    memory_bytes: int | None = None

    def fits(self, slot: Slot) -> bool:
        """Whether the device is large enough. Nothing is known of what a job needs on a CPU."""
        return slot.is_cpu or self.memory_bytes is None or self.memory_bytes <= slot.memory_bytes


@dataclass
class Plan:
    """What should happen now."""

    order: list[Waiter]
    starts: dict[str, list[Slot]] = field(default_factory=dict)
    """By job: the devices to start on, in the order of the queue."""

    fillers: set[str] = field(default_factory=set)
    """Those of `starts` that run before their turn."""

    head: Waiter | None = None
    give_way: list[str] = field(default_factory=list)
    """Running fillers whose devices the head needs, and with which it could start."""

    ahead: dict[str, str] = field(default_factory=dict)
    """By job: why others go first, in words that name no other team."""


def ordered(waiters: Sequence[Waiter], used: Mapping[str, float]) -> tuple[list[Waiter], dict[str, str]]:
    """The queue in order, and for each job the reason for its place."""
    use = dict(used)
    queues: dict[tuple[int, str], list[Waiter]] = {}
    for waiter in sorted(waiters, key=lambda each: (each.created_at, each.job_id)):
        queues.setdefault((waiter.priority, waiter.team_id), []).append(waiter)
    order: list[Waiter] = []
    why: dict[str, str] = {}
    for band in sorted({priority for priority, _ in queues}, reverse=True):
        teams = {team: deque(queue) for (priority, team), queue in queues.items() if priority == band}
        higher, turns, alone = len(order), Counter[str](), len(teams) == 1
        while teams:
            team = min(teams, key=lambda each: (use.get(each, 0.0), teams[each][0].created_at, teams[each][0].job_id))
            waiter = teams[team].popleft()
            others, least = len(order) - higher - turns[team], None if alone else used.get(team, 0.0)
            why[waiter.job_id] = _why(higher, others, turns[team], least)
            order.append(waiter)
            turns[team] += 1
            use[team] = use.get(team, 0.0) + waiter.gpus * NOMINAL_SECONDS
            if not teams[team]:
                del teams[team]
    return order, why


def plan(
    waiters: Sequence[Waiter],
    slots: Sequence[Slot],
    used: Mapping[str, float],
    *,
    here: str = "",
    may_start: Mapping[str, int] | None = None,
) -> Plan:
    """Order the queue and place what can be placed; on host `here`, which asks, before others.

    `may_start` says how many more jobs a team may run; teams that are not in it are free.
    """
    room = dict(may_start or {})
    order, why = ordered(waiters, used)
    made = Plan(order=order, ahead=why)
    hosts: dict[str, list[Slot]] = {}
    for slot in slots:
        hosts.setdefault(slot.host, []).append(slot)
    taken: set[str] = set()
    for waiter in order:
        if made.head is not None and not any(_is_free(slot, taken) for slot in slots):
            break
        if room.get(waiter.team_id, 1) <= 0:
            continue
        chosen = _place(waiter, hosts, taken, here)
        if chosen:
            if waiter.team_id in room:
                room[waiter.team_id] -= 1
            made.starts[waiter.job_id] = chosen
            taken |= {slot.uuid for slot in chosen}
            if made.head is not None:
                made.fillers.add(waiter.job_id)
        elif made.head is None and any(_could_ever(waiter, devices) for devices in hosts.values()):
            made.head = waiter
            made.give_way = _give_way(waiter, hosts, taken)
            if made.give_way:  # its devices come free in a moment: nobody else may take what it needs with them
                taken |= {slot.uuid for devices in hosts.values() for slot in devices if waiter.fits(slot)}
    return made


def _place(waiter: Waiter, hosts: Mapping[str, list[Slot]], taken: set[str], here: str) -> list[Slot]:
    """The smallest fitting free devices of one host; of `here` if it can, else of the host with the fewest left."""
    found = []
    could_have_a_gpu = any(
        sum(waiter.fits(each) and not each.is_cpu for each in devices) >= waiter.gpus for devices in hosts.values()
    )
    for host, devices in hosts.items():
        if could_have_a_gpu:  # a CPU would need weeks for it
            devices = [each for each in devices if not each.is_cpu]
        free = [each for each in devices if _is_free(each, taken) and waiter.fits(each)]
        if len(free) >= waiter.gpus:
            chosen = sorted(free, key=lambda slot: (slot.memory_bytes, slot.uuid))[: waiter.gpus]
            found.append((host != here, len(free), host, chosen))
    return min(found, key=lambda each: each[:3])[3] if found else []


def _could_ever(waiter: Waiter, devices: Sequence[Slot]) -> bool:
    return sum(waiter.fits(slot) for slot in devices) >= waiter.gpus


def _give_way(head: Waiter, hosts: Mapping[str, list[Slot]], taken: set[str]) -> list[str]:
    """The fewest fillers of one host without which the head can start; none when that would not help."""
    best: list[str] = []
    for devices in hosts.values():
        fitting = [slot for slot in devices if head.fits(slot) and not slot.is_foreign]
        missing = head.gpus - sum(_is_free(slot, taken) for slot in fitting)
        held = Counter(slot.job_id for slot in fitting if slot.filler and slot.job_id)
        chosen: list[str] = []
        for job_id, count in held.most_common():
            if missing > 0 and job_id is not None:
                chosen.append(job_id)
                missing -= count
        if missing <= 0 and chosen and (not best or len(chosen) < len(best)):
            best = chosen
    return best


def _is_free(slot: Slot, taken: set[str]) -> bool:
    return slot.job_id is None and not slot.is_foreign and slot.uuid not in taken


def _why(higher: int, others: int, own: int, least_seconds: float | None) -> str:
    """`least_seconds` is what its team has used, where it was weighed against others'."""
    parts = []
    if higher:
        parts.append(f"{higher} of a higher priority")
    if others:
        parts.append(f"{others} of teams that have used less device time lately")
    if own:
        parts.append(f"{own} older of its own team")
    if parts:
        before = higher + others + own
        return f"{before} {'job goes' if before == 1 else 'jobs go'} first: " + ", ".join(parts)
    if least_seconds is None:
        return "next"
    used = f"{least_seconds / 3600:.1f} h" if least_seconds >= 3600 else f"{least_seconds / 60:.0f} min"
    return f"next: its team has used the least device time lately ({used})"

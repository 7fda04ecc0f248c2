"""Who is next, and where: a pure function of the queue, the devices and the teams' use.

Order. Higher priority band first. Inside a band the team that has used the least goes first, with its oldest job; that
job is then counted as `NOMINAL_SECONDS` of use, so that a team with thirty jobs and a team with one take turns.

Devices. A job gets whole devices of one host, with enough memory, the smallest that do; what it keeps in the host's
memory (`offload`) must fit there beside what other jobs keep. The first job in this order that fits nowhere now, though
it would fit an empty host, is the *head*. Jobs behind it may still start on what is free:
as *fillers*, which save and give way as soon as the head could start on their devices. So gaps are used, and the head
waits for a checkpoint at most. A device on which somebody else's process computes is left alone. A team that runs as
many jobs as it may is passed over.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

NOMINAL_SECONDS = 600.0
"""Use that a place in the order counts for, per device, while nobody knows how long the job will take."""

HOST_SHARE = 0.8
"""Of a host's memory, what jobs may keep there; the rest is for their processes, and for others."""


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

    host_memory_bytes: int | None = None
    """Of its host; None: not known."""

    held_host_bytes: int = 0
    """What its holder keeps there for this device."""


@dataclass(frozen=True)
class Waiter:
    """A queued job."""

    job_id: str
    team_id: str
    created_at: float
    priority: int = 0
    gpus: int = 1
    memory_bytes: int | None = None
    host_bytes: int = 0
    """What it keeps in the host's memory for each of its GPUs."""

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
    taken: dict[str, int] = {}
    """By device, what its new holder will keep in the host's memory."""
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
            taken |= {slot.uuid: waiter.host_bytes for slot in chosen}
            if made.head is not None:
                made.fillers.add(waiter.job_id)
        elif made.head is None and any(could_ever(waiter, devices) for devices in hosts.values()):
            made.head = waiter
            host, made.give_way = _give_way(waiter, hosts, taken)
            if made.give_way:  # its devices come free in a moment: nobody else may take what it needs with them
                taken |= {slot.uuid: 0 for devices in hosts.values() for slot in devices if waiter.fits(slot)}
                theirs = [slot.uuid for slot in hosts[host] if waiter.fits(slot)]
                taken |= dict.fromkeys(theirs[: waiter.gpus], waiter.host_bytes)
    return made


def _place(waiter: Waiter, hosts: Mapping[str, list[Slot]], taken: Mapping[str, int], here: str) -> list[Slot]:
    """The smallest fitting free devices of one host; of `here` if it can, else of the host with the fewest left."""
    found = []
    could_have_a_gpu = any(
        sum(waiter.fits(each) and not each.is_cpu for each in devices) >= waiter.gpus for devices in hosts.values()
    )
    for host, devices in hosts.items():
        if could_have_a_gpu:  # a CPU would need weeks for it
            devices = [each for each in devices if not each.is_cpu]
        free = [each for each in devices if _is_free(each, taken) and waiter.fits(each)]
        if min(len(free), _host_has_room_for(waiter, devices, taken)) >= waiter.gpus:
            chosen = sorted(free, key=lambda slot: (slot.memory_bytes, slot.uuid))[: waiter.gpus]
            found.append((host != here, len(free), host, chosen))
    return min(found, key=lambda each: each[:3])[3] if found else []


def could_ever(waiter: Waiter, devices: Sequence[Slot]) -> bool:
    """Whether it fits this host when nothing else runs there."""
    everyone = {slot.job_id for slot in devices if slot.job_id}
    fitting = sum(waiter.fits(slot) for slot in devices)
    return min(fitting, _host_has_room_for(waiter, devices, {}, without=everyone)) >= waiter.gpus


def _give_way(head: Waiter, hosts: Mapping[str, list[Slot]], taken: Mapping[str, int]) -> tuple[str, list[str]]:
    """A host and few of its fillers, without which the head can start there; none when that would not help."""
    best: tuple[str, list[str]] = "", []
    for host, devices in hosts.items():
        held = Counter[str]()
        for slot in devices:
            if slot.filler and slot.job_id:
                held[slot.job_id] += head.fits(slot) and not slot.is_foreign
        chosen: list[str] = []
        for job_id, _ in held.most_common():
            if not _can_start(head, devices, taken, chosen):
                chosen.append(job_id)
        if not chosen or not _can_start(head, devices, taken, chosen):
            continue
        for job_id in tuple(chosen):
            if _can_start(head, devices, taken, others := [each for each in chosen if each != job_id]):
                chosen = others
        if not best[1] or len(chosen) < len(best[1]):
            best = host, chosen
    return best


def _can_start(waiter: Waiter, devices: Sequence[Slot], taken: Mapping[str, int], without: Collection[str]) -> bool:
    """On this host, when these jobs have left it."""
    free = sum(_is_free(slot, taken, without) and waiter.fits(slot) for slot in devices)
    return min(free, _host_has_room_for(waiter, devices, taken, without)) >= waiter.gpus


def room_for_jobs(host_memory_bytes: int) -> int:
    """What jobs may keep in the memory of a host, together."""
    return int(HOST_SHARE * host_memory_bytes)


def _host_has_room_for(
    waiter: Waiter, devices: Sequence[Slot], taken: Mapping[str, int], without: Collection[str] = ()
) -> int:
    """For how many devices of this host its memory takes what the waiter keeps there."""
    total = devices[0].host_memory_bytes if devices else None
    if waiter.host_bytes == 0 or total is None or devices[0].is_cpu:  # on a CPU nothing moves
        return len(devices)
    held = sum(slot.held_host_bytes for slot in devices if slot.job_id not in without)
    held += sum(taken.get(slot.uuid, 0) for slot in devices)
    return max(room_for_jobs(total) - held, 0) // waiter.host_bytes


def _is_free(slot: Slot, taken: Mapping[str, int], without: Collection[str] = ()) -> bool:
    is_held = slot.job_id is not None and slot.job_id not in without
    return not is_held and not slot.is_foreign and slot.uuid not in taken


def _why(higher: int, others: int, own: int, least_seconds: float | None) -> str:
    """`least_seconds` is what its team has used, where it was weighed against others'."""
    counted = {
        "of a higher priority": higher,
        "of teams that have used less device time lately": others,
        "of its own team": own,
    }
    parts = [(count, whose) for whose, count in counted.items() if count]
    if parts:
        before = higher + others + own
        jobs = f"{before} {'job' if before == 1 else 'jobs'}"
        goes = "goes" if before == 1 else "go"
        if len(parts) == 1:
            return f"{jobs} {parts[0][1]} {goes} first"
        return f"{jobs} {goes} first: " + ", ".join(f"{count} {whose}" for count, whose in parts)
    if least_seconds is None:
        return "next"
    used = f"{least_seconds / 3600:.1f} h" if least_seconds >= 3600 else f"{least_seconds / 60:.0f} min"
    return f"next: its team has used the least device time lately ({used})"

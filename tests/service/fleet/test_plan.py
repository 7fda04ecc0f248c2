"""Who is next and where: order, fair share, packing, the head that nobody delays, and what is left alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from jenga_core.service.fleet.plan import HOST_SHARE, Slot, Waiter, ordered, plan

GIB = 2**30


def slots(*hosts: tuple[str, int], gib: int = 80) -> list[Slot]:
    return [Slot(f"{host}-{index}", host, gib * GIB) for host, count in hosts for index in range(count)]


def waiter(job: str, team: str = "a", at: float = 0.0, **columns: object) -> Waiter:
    return Waiter(job, team, at, **columns)  # type: ignore[arg-type]


def held(slot: Slot, job: str, *, filler: bool = False) -> Slot:
    return replace(slot, job_id=job, filler=filler)


def test_of_thirty_jobs_of_one_team_and_one_of_another_the_one_is_next() -> None:
    queue = [waiter(f"a{number}", "a", number) for number in range(29)] + [waiter("b", "b", 100)]
    order, why = ordered(queue, {"a": 60.0})
    assert order[0].job_id == "b"
    assert why["b"] == "next: its team has used the least device time lately (0 min)"
    assert [each.job_id for each in order[1:4]] == ["a0", "a1", "a2"]
    assert why["a1"] == "2 jobs go first: 1 of teams that have used less device time lately, 1 of its own team"


def test_a_team_that_waits_alone_is_not_weighed_against_others() -> None:
    _, why = ordered(
        [waiter("first", "a", 0), waiter("second", "a", 1), waiter("low", "b", 0, priority=-1)], {"a": 60.0}
    )
    assert why["first"] == "next"
    assert why["second"] == "1 job of its own team goes first"


def test_teams_take_turns_and_a_place_counts_like_use() -> None:
    queue = [waiter(f"{team}{number}", team, number) for team in "ab" for number in range(3)]
    order, _ = ordered(queue, {})
    assert [each.team_id for each in order] == ["a", "b", "a", "b", "a", "b"]
    wide = [waiter("wide", "a", 0, gpus=4), *(waiter(f"b{number}", "b", 1 + number) for number in range(5))]
    order, _ = ordered([*wide, waiter("second", "a", 1)], {})
    assert [each.job_id for each in order] == ["wide", "b0", "b1", "b2", "b3", "second", "b4"]


def test_a_higher_band_goes_first_whatever_was_used() -> None:
    queue = [waiter("low", "b", 0, priority=-1), waiter("plain", "b", 1), waiter("urgent", "a", 2, priority=1)]
    order, why = ordered(queue, {"a": 1e6})
    assert [each.job_id for each in order] == ["urgent", "plain", "low"]
    assert why["low"] == "2 jobs of a higher priority go first"


def test_a_job_gets_the_smallest_devices_that_fit_on_one_host() -> None:
    devices = slots(("big", 2), gib=80) + slots(("small", 2), gib=24)
    made = plan([waiter("job", memory_bytes=20 * GIB)], devices, {})
    assert [slot.uuid for slot in made.starts["job"]] == ["big-0"] or made.starts["job"][0].host == "small"
    made = plan([waiter("job", memory_bytes=20 * GIB)], devices, {}, here="small")
    assert [slot.uuid for slot in made.starts["job"]] == ["small-0"]
    made = plan([waiter("job", memory_bytes=30 * GIB)], devices, {}, here="small")
    assert [slot.uuid for slot in made.starts["job"]] == ["big-0"]
    mixed = [Slot("x-0", "x", 80 * GIB), Slot("x-1", "x", 24 * GIB)]
    assert [slot.uuid for slot in plan([waiter("job", memory_bytes=GIB)], mixed, {}).starts["job"]] == ["x-1"]
    assert plan([waiter("job", gpus=3)], slots(("one", 2), ("two", 2)), {}).starts == {}


def test_small_jobs_fill_the_gap_before_a_head_that_waits_and_are_marked() -> None:
    first, second = slots(("host", 2))
    queue = [waiter("head", gpus=2), waiter("small", "b", 1)]
    made = plan(queue, [held(first, "running"), second], {})
    assert made.head == queue[0]
    assert (list(made.starts), made.fillers, made.give_way) == (["small"], {"small"}, [])


def test_a_filler_gives_way_as_soon_as_the_head_could_start() -> None:
    first, second = slots(("host", 2))
    queue = [waiter("head", gpus=2), waiter("small", "b", 1)]
    made = plan(queue, [first, held(second, "filler", filler=True)], {})
    assert made.give_way == ["filler"]
    assert made.starts == {}  # nobody takes the free device meanwhile
    made = plan(queue, [held(first, "running"), held(second, "filler", filler=True)], {})
    assert made.give_way == []  # it would not help yet
    made = plan(queue, [first, second], {})
    assert list(made.starts) == ["head"]


def test_the_fewest_fillers_give_way() -> None:
    devices = slots(("one", 3), ("two", 2))
    held_by = ["f1", "f2", "f3", "f4", None]
    fleet = [slot if job is None else held(slot, job, filler=True) for slot, job in zip(devices, held_by, strict=True)]
    assert plan([waiter("head", gpus=2)], fleet, {}).give_way == ["f4"]


def test_a_device_on_which_somebody_else_computes_is_left_alone() -> None:
    (device,) = slots(("host", 1))
    made = plan([waiter("job")], [replace(device, is_foreign=True)], {})
    assert (made.starts, made.head, made.give_way) == ({}, waiter("job"), [])


def test_a_job_that_fits_no_host_holds_nobody_up() -> None:
    made = plan([waiter("giant", gpus=8), waiter("small", at=1)], slots(("host", 2)), {})
    assert (made.head, list(made.starts), made.fillers) == (None, ["small"], set())


def on_host_of(gib: int, *devices: Slot) -> list[Slot]:
    return [replace(each, host_memory_bytes=gib * GIB) for each in devices]


def test_what_jobs_keep_in_the_memory_of_a_host_must_fit_there_together() -> None:
    devices = on_host_of(100, *slots(("host", 4)))  # 80 GiB of it are for jobs
    queue = [waiter(f"j{number}", at=number, host_bytes=30 * GIB) for number in range(3)] + [waiter("none", at=3)]
    made = plan(queue, devices, {})
    assert list(made.starts) == ["j0", "j1", "none"]
    assert made.head == queue[2]
    assert made.fillers == {"none"}
    busy = [replace(devices[0], job_id="r", held_host_bytes=60 * GIB), *devices[1:]]
    assert list(plan(queue, busy, {}).starts) == ["none"]
    unknown = [replace(each, host_memory_bytes=None) for each in busy]
    assert list(plan(queue, unknown, {}).starts) == ["j0", "j1", "j2"]


def test_each_device_of_a_job_keeps_as_much_there() -> None:
    devices = on_host_of(100, *slots(("host", 4)))
    assert plan([waiter("pair", gpus=2, host_bytes=40 * GIB)], devices, {}).starts
    made = plan([waiter("pair", gpus=2, host_bytes=41 * GIB), waiter("next", at=1)], devices, {})
    assert (list(made.starts), made.head) == (["next"], None)  # it would fit no empty host, so it holds nobody up


def test_a_filler_gives_way_for_the_memory_of_its_host_too() -> None:
    first, second = on_host_of(100, *slots(("host", 2)))
    filler = replace(first, job_id="f", filler=True, held_host_bytes=60 * GIB)
    made = plan([waiter("job", host_bytes=50 * GIB)], [filler, second], {})
    assert (made.starts, made.give_way) == ({}, ["f"])
    assert plan([waiter("job", host_bytes=20 * GIB)], [filler, second], {}).starts


def test_no_filler_takes_the_memory_of_the_host_that_the_head_waits_for() -> None:
    """On a device that is too small for the head, with others that do the same in turn."""
    large, *small = on_host_of(100, *slots(("host", 1)), *slots(("small", 2), gib=24))
    small = [replace(each, host="host") for each in small]
    filler = replace(small[0], job_id="f2", filler=True, held_host_bytes=30 * GIB)
    queue = [
        waiter("head", memory_bytes=60 * GIB, host_bytes=60 * GIB),
        waiter("f3", at=1, memory_bytes=20 * GIB, host_bytes=30 * GIB),
        waiter("without", at=2, memory_bytes=20 * GIB),
    ]
    made = plan(queue, [large, filler, small[1]], {})
    assert (made.give_way, list(made.starts)) == (["f2"], ["without"])


def test_a_filler_without_which_nothing_changes_stays() -> None:
    first, second, third = on_host_of(100, *slots(("host", 3)))
    without = replace(first, job_id="a", filler=True)
    keeps = replace(second, job_id="b", filler=True, held_host_bytes=40 * GIB)
    for fleet in ([without, keeps, third], [keeps, without, third]):
        assert plan([waiter("job", host_bytes=50 * GIB)], fleet, {}).give_way == ["b"]


def test_on_a_cpu_nothing_moves_to_the_memory_of_the_host() -> None:
    (cpu,) = on_host_of(1, Slot("CPU-1", "host", GIB, is_cpu=True))
    assert plan([waiter("job", host_bytes=500 * GIB)], [cpu], {}).starts


def test_a_cpu_takes_any_job() -> None:
    made = plan([waiter("job", memory_bytes=500 * GIB)], [Slot("CPU-1", "host", GIB, is_cpu=True)], {})
    assert list(made.starts) == ["job"]


WAITERS = st.lists(
    st.builds(
        Waiter,
        job_id=st.uuids().map(str),
        team_id=st.sampled_from("abc"),
        created_at=st.floats(0, 100),
        priority=st.sampled_from([-1, 0, 1]),
        gpus=st.integers(1, 3),
        memory_bytes=st.none() | st.integers(1, 100).map(lambda gib: gib * GIB),
        host_bytes=st.sampled_from([0, 10 * GIB, 40 * GIB]),
    ),
    max_size=12,
    unique_by=lambda each: each.job_id,
)
SLOTS = st.lists(
    st.builds(
        Slot,
        uuid=st.uuids().map(str),
        host=st.sampled_from(["h1", "h2"]),
        memory_bytes=st.sampled_from([24 * GIB, 80 * GIB]),
        is_foreign=st.booleans(),
        job_id=st.none() | st.sampled_from(["r1", "r2"]),
        filler=st.booleans(),
        host_memory_bytes=st.just(64 * GIB),
        held_host_bytes=st.sampled_from([0, 10 * GIB]),
    ),
    max_size=8,
    unique_by=lambda each: each.uuid,
)


@given(WAITERS, SLOTS, st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6)))
def test_whatever_the_queue_no_device_is_given_twice_and_nobody_overtakes_without_giving_way(
    queue: list[Waiter], fleet: list[Slot], used: dict[str, float]
) -> None:
    made = plan(queue, fleet, used)
    assert sorted(each.job_id for each in made.order) == sorted(each.job_id for each in queue)
    bands = [each.priority for each in made.order]
    assert bands == sorted(bands, reverse=True)
    given = [slot.uuid for chosen in made.starts.values() for slot in chosen]
    assert len(given) == len(set(given))
    by_id = {each.job_id: each for each in queue}
    place = {each.job_id: index for index, each in enumerate(made.order)}
    for job_id, chosen in made.starts.items():
        wanted = by_id[job_id]
        assert len(chosen) == wanted.gpus
        assert len({slot.host for slot in chosen}) == 1
        assert all(slot.job_id is None and not slot.is_foreign and wanted.fits(slot) for slot in chosen)
        overtakes = made.head is not None and place[job_id] > place[made.head.job_id]
        assert overtakes == (job_id in made.fillers)
    for host in ("h1", "h2"):
        kept = sum(slot.held_host_bytes for slot in fleet if slot.host == host)
        new = [
            by_id[job_id].host_bytes for job_id, chosen in made.starts.items() for slot in chosen if slot.host == host
        ]
        assert not any(new) or kept + sum(new) <= HOST_SHARE * 64 * GIB
    running_fillers = {slot.job_id for slot in fleet if slot.filler}
    assert set(made.give_way) <= running_fillers


def test_a_cpu_takes_no_job_that_a_gpu_of_the_fleet_could_take() -> None:
    """Even if that one is taken, and the CPU's host asks first."""
    (gpu,) = slots(("gpus", 1))
    cpu = Slot("CPU-1", "cpus", GIB, is_cpu=True)
    job, giant = waiter("job", memory_bytes=60 * GIB), waiter("giant", memory_bytes=500 * GIB)
    assert [slot.uuid for slot in plan([job], [gpu, cpu], {}, here="cpus").starts["job"]] == [gpu.uuid]
    assert plan([job], [held(gpu, "other"), cpu], {}, here="cpus").starts == {}
    assert [slot.uuid for slot in plan([giant], [gpu, cpu], {}, here="cpus").starts["giant"]] == ["CPU-1"]

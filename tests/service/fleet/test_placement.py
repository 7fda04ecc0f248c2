"""The plan on real rows: what a worker claims, who gives way, what a waiting job is told, what people see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import DeviceLease, Job, Worker
from jenga_core.service.db.session import Database
from jenga_core.service.fleet import placement, registration, repository, usage
from jenga_core.service.fleet.registration import LOST_SECONDS, Process, Report
from jenga_core.service.jobs import lifecycle
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from tests.support.fleet import GIB, gpus, join_fleet
from tests.support.jobs import Seed, seed, submit_job

Submit = Callable[..., str]


@pytest.fixture
def teams(database: Database, settings: Settings) -> dict[str, Seed]:
    return {name: seed(database, settings) for name in "ab"}


@pytest.fixture
def submit(database: Database, teams: dict[str, Seed]) -> Submit:
    def queue(team: str = "a", **columns: Any) -> str:
        return submit_job(database, teams[team], **columns)

    return queue


def claim(database: Database, worker_id: str) -> Job | None:
    """What a supervisor does."""
    with database.writing() as session:
        choice = placement.choose(session, worker_id)
        if choice is None:
            return None
        return lifecycle.claim(session, choice.job_id, lease_seconds=60, devices=choice.devices, filler=choice.filler)


def claimed(database: Database, worker_id: str) -> Job:
    job = claim(database, worker_id)
    assert job is not None
    return job


def test_team_b_s_one_job_is_next_after_team_a_s_first_of_thirty(database: Database, submit: Submit) -> None:
    of_a = [submit("a") for _ in range(30)]
    of_b = submit("b")
    worker = join_fleet(database, *gpus("0"))
    running = claimed(database, worker)
    assert running.id == of_a[0]
    with database.reading() as session:
        told = placement.waiting(session, [of_b, of_a[1]])
    assert told[of_b].position == 1
    assert told[of_b].reason == (
        "next: its team has used the least device time lately (0 min); waits for a free device: the only one is busy"
    )
    assert told[of_a[1]].position == 2
    assert "1 job of teams that have used less device time lately goes first" in told[of_a[1]].reason
    assert running.lease_token is not None
    with database.writing() as session:
        lifecycle.settle(session, running.id, running.lease_token, JobState.SUCCEEDED)
    assert claimed(database, worker).id == of_b


def test_a_worker_claims_only_for_its_own_devices(database: Database, submit: Submit) -> None:
    small, large = submit(memory_bytes=20 * GIB), submit(memory_bytes=60 * GIB)
    with_small = join_fleet(database, *gpus("s", gib=24))
    with_large = join_fleet(database, *gpus("l", gib=80), host="other")
    assert claimed(database, with_small).id == small
    assert claim(database, with_small) is None
    assert claimed(database, with_large).id == large


def test_the_memory_of_a_host_is_shared_by_what_its_jobs_keep_there(database: Database, submit: Submit) -> None:
    first, second = (submit(memory_bytes=20 * GIB, host_bytes=50 * GIB) for _ in range(2))
    worker = join_fleet(database, *gpus("0", "1"), host_gib=100)
    running = claimed(database, worker)
    assert running.id == first
    assert claim(database, worker) is None
    with database.reading() as session:
        reason = placement.waiting(session, [second])[second].reason
    assert reason == "next; waits for a free device with 20.0 GiB, and 50.0 GiB of its host's memory: 1 of 2 is busy"
    assert running.lease_token is not None
    with database.writing() as session:
        lifecycle.settle(session, running.id, running.lease_token, JobState.SUCCEEDED)
    assert claimed(database, worker).id == second


def test_what_waits_in_vain_is_told_with_the_memory_of_the_host(database: Database, submit: Submit) -> None:
    job = submit(host_bytes=100 * GIB)
    join_fleet(database, *gpus("0"), host_gib=64)
    with database.reading() as session:
        reason = placement.waiting(session, [job])[job].reason
    assert reason == "no worker that is online has a free device, and 100.0 GiB of its host's memory"


def test_the_room_of_a_host_is_that_of_one_which_has_the_devices(database: Database) -> None:
    def room(gpus: int = 1, gib: int = 0) -> int | None:
        with database.reading() as session:
            return placement.host_room_bytes(session, gpus=gpus, device_bytes=gib * GIB)

    assert room() is None
    join_fleet(database, *gpus("s0", "s1", gib=24), host="small GPUs", host_gib=1000)
    join_fleet(database, *gpus("l0", "l1", gib=80), host="large GPUs", host_gib=100)
    join_fleet(database, Report("CPU-1", "cpu", "test", 4000 * GIB), host="none", host_gib=4000)
    assert (room(), room(2), room(3)) == (800 * GIB, 400 * GIB, None)
    assert (room(1, 60), room(2, 60), room(1, 100)) == (80 * GIB, 40 * GIB, None)
    join_fleet(database, *gpus("x", gib=80), host="of unknown size")
    assert (room(1, 60), room(2, 60)) == (None, 40 * GIB)


def test_several_jobs_share_a_host_and_one_job_may_take_several_devices(database: Database, submit: Submit) -> None:
    first, pair, _late = submit(), submit(gpus=2), submit()
    worker = join_fleet(database, *gpus("0", "1", "2"))
    assert [claimed(database, worker).id for _ in range(2)] == [first, pair]
    assert claim(database, worker) is None
    with database.reading() as session:
        held = session.query(DeviceLease.job_id, DeviceLease.device_uuid).order_by(DeviceLease.device_uuid).all()
    assert [tuple(row) for row in held] == [(first, "GPU-0"), (pair, "GPU-1"), (pair, "GPU-2")]


def test_a_filler_uses_the_gap_and_gives_way_to_the_head(database: Database, submit: Submit) -> None:
    submit()
    head, small = submit(gpus=2), submit("b", created_at=database_now() + 5)
    worker = join_fleet(database, *gpus("0", "1"))
    running = claimed(database, worker)
    with database.writing() as session:  # team b has used more, so its job is not before the head
        usage.charge(session, session.get_one(Job, small).team_id, 1e6)
    filler = claimed(database, worker)
    assert (filler.id, filler.filler) == (small, True)
    assert claim(database, worker) is None
    assert wishes(database, filler).give_way is False
    assert running.lease_token is not None
    with database.writing() as session:
        lifecycle.settle(session, running.id, running.lease_token, JobState.SUCCEEDED)
    assert claim(database, worker) is None
    assert wishes(database, filler).give_way is True
    assert filler.lease_token is not None
    with database.writing() as session:
        lifecycle.requeue(session, filler.id, filler.lease_token, counted=False)
    assert claimed(database, worker).id == head


def wishes(database: Database, job: Job) -> lifecycle.Wishes:
    assert job.lease_token is not None
    with database.writing() as session:
        return lifecycle.renew(session, job.id, job.lease_token, lease_seconds=60)


@pytest.mark.parametrize("away", ["silent", "draining", "signed off"])
def test_nothing_is_placed_on_a_worker_that_is_away(database: Database, submit: Submit, away: str) -> None:
    job_id = submit()
    worker = join_fleet(database, *gpus("0"))
    with database.writing() as session:
        match away:
            case "silent":
                session.get_one(Worker, worker).heartbeat_at = database_now() - LOST_SECONDS - 1
            case "draining":
                registration.beat(session, worker, gpus("0"), draining=True)
            case "signed off":
                registration.sign_off(session, worker)
    assert claim(database, worker) is None
    with database.reading() as session:
        assert placement.waiting(session, [job_id])[job_id].reason == "no worker is online"
        (view,) = repository.fleet(session).workers
        assert view.state == ("draining" if away == "draining" else "lost")


def test_what_waits_for_what_is_told(database: Database, submit: Submit) -> None:
    join_fleet(database, *gpus("0", "1", gib=24))
    giant, wide, plain = submit(memory_bytes=70 * GIB), submit(gpus=4), submit()
    with database.reading() as session:
        told = placement.waiting(session, [giant, wide, plain])
    assert told[giant].reason == "no worker that is online has a free device with 70.0 GiB"
    assert told[wide].reason == "no worker that is online has 4 free devices of one host"
    assert told[plain].reason.endswith("; a worker is about to take it")
    with database.reading() as session:
        assert placement.waiting(session, ["ftjob-unknown"]) == {}


def test_foreign_processes_are_told_and_their_device_is_left_alone(database: Database, submit: Submit) -> None:
    (gpu,) = gpus("0")
    stranger = Process(4711, "python", 20 * GIB)
    worker = join_fleet(database, Report(**{**vars(gpu), "foreign_processes": [stranger]}))
    job_id = submit()
    assert claim(database, worker) is None
    with database.reading() as session:
        assert placement.waiting(session, [job_id])[job_id].reason.endswith(
            "waits for a free device: the only one is held by processes that are no jobs of this service"
        )
        ((device,),) = [view.devices for view in repository.fleet(session).workers]
    assert device.foreign_processes == [{"pid": 4711, "name": "python", "memory_bytes": 20 * GIB}]


def test_a_second_worker_of_a_host_takes_the_devices_over_when_the_first_is_gone(
    database: Database, submit: Submit
) -> None:
    first = join_fleet(database, *gpus("0"))
    second = join_fleet(database, *gpus("0"))
    job_id = submit()
    assert claim(database, second) is None  # the first reports them
    with database.writing() as session:
        registration.sign_off(session, first)
        assert registration.beat(session, second, gpus("0"))
    assert claimed(database, second).id == job_id


def test_the_view_of_the_fleet(database: Database, submit: Submit, teams: dict[str, Seed]) -> None:
    running, queued = submit("a"), submit("b")
    worker = join_fleet(database, *gpus("0"))
    assert claimed(database, worker).id == running
    with database.reading() as session:
        fleet = repository.fleet(session)
    ((device,),) = [view.devices for view in fleet.workers]
    assert device.held_by == repository.Holder(running, teams["a"].team_id)
    assert [(entry.job_id, entry.team_id, entry.position) for entry in fleet.queue] == [(queued, teams["b"].team_id, 1)]
    by_id = {view.team_id: view for view in fleet.teams}
    assert (by_id[teams["a"].team_id].running, by_id[teams["a"].team_id].queued) == (1, 0)
    assert (by_id[teams["b"].team_id].running, by_id[teams["b"].team_id].queued) == (0, 1)
    assert by_id[teams["a"].team_id].gpu_seconds_decayed == usage.LEAST_SECONDS
    assert by_id[teams["b"].team_id].gpu_seconds_decayed == 0


def test_use_fades(database: Database, teams: dict[str, Seed]) -> None:
    team_id = teams["a"].team_id
    with database.writing() as session:
        usage.charge(session, team_id, 1000)
        usage.charge(session, team_id, 500)
    with database.reading() as session:
        assert usage.by_team(session)[team_id] == pytest.approx(1500, rel=1e-3)
    assert usage.decayed(1000, usage.HALF_LIFE_SECONDS) == 500
    assert usage.decayed(1000, -5) == 1000  # a clock that was set back adds nothing


def test_a_worker_that_was_struck_off_signs_on_again(database: Database) -> None:
    with database.writing() as session:
        assert not registration.beat(session, "worker-unknown", gpus("0"))
    silent = join_fleet(database, *gpus("old"))
    with database.writing() as session:
        session.get_one(Worker, silent).heartbeat_at = 1.0
    join_fleet(database, *gpus("new"))
    with database.reading() as session:
        assert session.get(Worker, silent) is None

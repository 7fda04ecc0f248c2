"""Every writer against every state; claims under contention; leases that ran out or were lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import DeviceLease, Job, JobEvent
from jenga_core.service.db.session import Database
from jenga_core.service.fleet import leases, usage
from jenga_core.service.jobs import events, lifecycle, queue
from jenga_core.service.jobs.lifecycle import JobConflict, LeaseLost
from jenga_core.service.jobs.state import ALLOWED, JobStage, JobState
from jenga_core.service.settings import Settings
from tests.support.fleet import gpus, join_fleet
from tests.support.jobs import Seed, force, new_job, seed, submit_job

S = JobState
TOKEN = "held"


@pytest.fixture(autouse=True)
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids for which the doorbell rang; nothing is sent."""
    ids: list[str] = []
    monkeypatch.setattr(queue, "ring", ids.append)
    return ids


@pytest.fixture
def seeded(database: Database, settings: Settings) -> Seed:
    return seed(database, settings)


@pytest.fixture
def submit(database: Database, seeded: Seed) -> Callable[[], str]:
    return lambda: submit_job(database, seeded)


def load(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def take_back(session: Session, job_id: str) -> None:
    for job in lifecycle.expired(session):
        assert job.id == job_id
        lifecycle.take_back(session, job, max_attempts=3)


def settle(to: JobState) -> Callable[[Session, str], None]:
    return lambda session, job_id: lifecycle.settle(session, job_id, TOKEN, to)


HELD = {to: {source: to for source in S if source.is_held and to in ALLOWED[source]} for to in S}
WRITERS: dict[str, tuple[Callable[[Session, str], object], dict[JobState, JobState], set[JobState]]] = {
    # name: (what it does, the moves it must make, the states in which doing nothing is fine; elsewhere it must raise)
    "claim": (
        lambda session, job_id: lifecycle.claim(session, job_id, lease_seconds=9),
        {S.QUEUED: S.RUNNING},
        set(S) - {S.QUEUED},
    ),
    "succeed": (settle(S.SUCCEEDED), HELD[S.SUCCEEDED], set()),
    "fail": (settle(S.FAILED), HELD[S.FAILED], set()),
    "settle_cancelled": (settle(S.CANCELLED), HELD[S.CANCELLED], set()),
    "requeue": (lambda session, job_id: lifecycle.requeue(session, job_id, TOKEN), HELD[S.QUEUED], set()),
    "pause": (lambda session, job_id: lifecycle.pause(session, job_id, TOKEN), {S.PAUSING: S.PAUSED}, set()),
    "request_pause": (
        lifecycle.request_pause,
        {S.QUEUED: S.PAUSED, S.RUNNING: S.PAUSING},
        {S.PAUSING, S.PAUSED},
    ),
    "resume": (lifecycle.resume, {S.PAUSED: S.QUEUED}, {S.QUEUED, S.RUNNING}),
    "request_stop": (lifecycle.request_stop, {S.PAUSED: S.QUEUED}, {S.QUEUED, S.RUNNING}),
    "request_cancel": (
        lifecycle.request_cancel,
        {S.QUEUED: S.CANCELLED, S.PAUSED: S.CANCELLED, S.RUNNING: S.CANCELLING, S.PAUSING: S.CANCELLING},
        {S.CANCELLING, S.CANCELLED},
    ),
    "take_back": (
        take_back,
        {S.RUNNING: S.QUEUED, S.PAUSING: S.PAUSED, S.CANCELLING: S.CANCELLED},
        {S.QUEUED, S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELLED},
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_makes_its_moves_and_no_others(database: Database, submit: Callable[[], str], writer: str) -> None:
    write, moves, harmless = WRITERS[writer]
    for source in S:
        job_id = submit()
        force(database, job_id, source, token=TOKEN, lease=-1, step=3)
        refused = None
        try:
            with database.writing() as session:
                write(session, job_id)
        except (JobConflict, LeaseLost) as error:
            refused = error
        after = S(load(database, job_id).state)
        assert after is moves.get(source, source), (writer, source)
        assert after is source or after in ALLOWED[source], (writer, source)
        assert (refused is None) == (source in moves or source in harmless), (writer, source)
        force(database, job_id, S.FAILED)  # out of the way of the next claim


def test_every_pair_of_states_is_moved_by_some_writer_exactly_when_it_is_allowed() -> None:
    made = {(source, to) for _, moves, _ in WRITERS.values() for source, to in moves.items()}
    for source in S:
        for to in S:
            assert ((source, to) in made) == (to in ALLOWED[source]), (source, to)


def test_submit_queues_and_tells(database: Database, submit: Callable[[], str], rung: list[str]) -> None:
    job_id = submit()
    job = load(database, job_id)
    assert (job.state, job.stage, job.attempt, job.event_seq) == ("queued", "validate", 0, 1)
    assert rung == [job_id]
    with database.reading() as session:
        assert lifecycle.unrung(session, older_than_seconds=60) == []


def test_the_doorbell_rings_after_the_commit_only(database: Database, seeded: Seed, rung: list[str]) -> None:
    with database.writing() as session:
        lifecycle.submit(session, new_job(seeded))
        assert rung == []
    assert len(rung) == 1


def test_the_doorbell_stays_silent_when_the_transaction_fails(
    database: Database, seeded: Seed, rung: list[str]
) -> None:
    def fail() -> None:
        with database.writing() as session:
            lifecycle.submit(session, new_job(seeded))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert rung == []


def test_a_claim_takes_the_job_and_the_devices_once(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()
    worker_id = join_fleet(database, *gpus("a", "b"))
    assert worker_id
    with database.writing() as session:
        job = lifecycle.claim(session, job_id, lease_seconds=60, devices=["GPU-a", "GPU-b"])
        assert job is not None
        assert (job.state, job.attempt, job.filler) == (S.RUNNING, 1, False)
        assert leases.held_by(session, job_id) == ["GPU-a", "GPU-b"]
    with database.writing() as session:
        assert lifecycle.claim(session, job_id, lease_seconds=60) is None
    other = submit()
    with pytest.raises(IntegrityError), database.writing() as session:
        lifecycle.claim(session, other, lease_seconds=60, devices=["GPU-b"])
    assert load(database, other).state == S.QUEUED


@pytest.mark.parametrize("end", ["settle", "requeue", "pause", "take_back"])
def test_devices_are_free_when_the_job_is_let_go_and_the_team_is_charged(
    database: Database, seeded: Seed, submit: Callable[[], str], end: str
) -> None:
    job_id = submit()
    join_fleet(database, *gpus("a", "b"))
    with database.writing() as session:
        job = lifecycle.claim(session, job_id, lease_seconds=60, devices=["GPU-a", "GPU-b"])
        assert job is not None
        assert job.lease_token is not None
        token = job.lease_token
        for lease in session.scalars(select(DeviceLease)):
            lease.since = database_now() - 100
    if end == "pause":
        with database.writing() as session:
            lifecycle.request_pause(session, job_id)
    with database.writing() as session:
        match end:
            case "settle":
                lifecycle.settle(session, job_id, token, S.SUCCEEDED)
            case "requeue":
                lifecycle.requeue(session, job_id, token)
            case "pause":
                lifecycle.pause(session, job_id, token)
            case "take_back":
                session.get_one(Job, job_id).lease_expires_at = 0.0
                session.flush()
                take_back(session, job_id)
    with database.reading() as session:
        assert leases.held_by(session, job_id) == []
        assert usage.by_team(session)[seeded.team_id] == pytest.approx(200, rel=0.1)
    assert load(database, job_id).gpu_seconds == pytest.approx(200, rel=0.1)


def test_four_claimers_never_get_the_same_job(database: Database, submit: Callable[[], str]) -> None:
    submitted = {submit() for _ in range(30)}

    def claim_all(offset: int) -> Iterator[tuple[str, str]]:
        for job_id in sorted(submitted, key=lambda each: each[8 + offset :]):
            with database.writing() as session:
                job = lifecycle.claim(session, job_id, lease_seconds=60)
            if job is not None:
                assert job.lease_token is not None
                yield job.id, job.lease_token

    with ThreadPoolExecutor(4) as pool:
        claimed = [pair for claims in pool.map(lambda n: list(claim_all(n)), range(4)) for pair in claims]
    assert len(claimed) == 30
    assert {job_id for job_id, _ in claimed} == submitted
    assert len({token for _, token in claimed}) == 30


def in_stage(database: Database, job_id: str, stage: JobStage, *, step: int = 0) -> None:
    force(database, job_id, S.RUNNING, token=TOKEN, stage=stage, step=step)


@pytest.mark.parametrize("stage", [JobStage.EVALUATE, JobStage.PUBLISH])
def test_a_stage_that_cannot_be_paused_or_stopped_is_named(
    database: Database, submit: Callable[[], str], stage: JobStage
) -> None:
    job_id = submit()
    in_stage(database, job_id, stage, step=3)
    for request in (lifecycle.request_pause, lifecycle.request_stop):
        with pytest.raises(JobConflict, match=f"is in stage {stage}"), database.writing() as session:
            request(session, job_id)
    assert load(database, job_id).state == S.RUNNING


def test_a_pause_gives_the_attempt_back_and_a_resume_rings(
    database: Database, submit: Callable[[], str], rung: list[str]
) -> None:
    job_id = submit()
    with database.writing() as session:
        job = lifecycle.claim(session, job_id, lease_seconds=60)
        assert job is not None
        assert job.lease_token is not None
        assert lifecycle.request_pause(session, job_id) is S.PAUSING
        assert lifecycle.renew(session, job_id, job.lease_token, lease_seconds=60).state is S.PAUSING
        with pytest.raises(JobConflict, match="wait until it is paused"):
            lifecycle.resume(session, job_id)
        lifecycle.pause(session, job_id, job.lease_token)
    paused = load(database, job_id)
    assert (paused.state, paused.attempt, paused.lease_token) == (S.PAUSED, 0, None)
    rung.clear()
    with database.writing() as session:
        assert lifecycle.resume(session, job_id) is S.QUEUED
        assert lifecycle.resume(session, job_id) is S.QUEUED
    assert rung == [job_id]


@pytest.mark.parametrize("stage", [JobStage.VALIDATE, JobStage.PREPARE, JobStage.CALIBRATE, JobStage.TRAIN_PREDICTORS])
def test_nothing_trained_is_nothing_to_finish_with(
    database: Database, submit: Callable[[], str], stage: JobStage
) -> None:
    job_id = submit()
    in_stage(database, job_id, stage)
    with (
        pytest.raises(JobConflict, match=f"is in stage {stage} and has trained no step"),
        database.writing() as session,
    ):
        lifecycle.request_stop(session, job_id)
    in_stage(database, job_id, stage, step=2)  # a later attempt, on its way back to where it was
    with database.writing() as session:
        assert lifecycle.request_stop(session, job_id) is S.RUNNING


def test_a_wish_to_finish_reaches_the_supervisor_and_rules_out_a_pause(
    database: Database, submit: Callable[[], str]
) -> None:
    job_id = submit()
    in_stage(database, job_id, JobStage.FINETUNE)
    with database.writing() as session:
        assert not lifecycle.renew(session, job_id, TOKEN, lease_seconds=60).finish
        for _ in range(2):
            assert lifecycle.request_stop(session, job_id) is S.RUNNING
        assert lifecycle.renew(session, job_id, TOKEN, lease_seconds=60).finish
        with pytest.raises(JobConflict, match="was asked to finish"):
            lifecycle.request_pause(session, job_id)
    with database.reading() as session:
        told = session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id)).all()
    assert sum("Stop requested" in message for message in told) == 1


def test_a_paused_job_that_is_stopped_is_queued_to_finish(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()
    force(database, job_id, S.PAUSED, step=5)
    with database.writing() as session:
        assert lifecycle.request_stop(session, job_id) is S.QUEUED
    assert load(database, job_id).stop_asked_at is not None


def test_a_stale_token_writes_nothing(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()
    force(database, job_id, S.RUNNING, token=TOKEN)
    before = load(database, job_id)
    for write in (
        lambda session: lifecycle.renew(session, job_id, "stale", lease_seconds=999),
        lambda session: lifecycle.record(session, job_id, "stale", step=7),
        lambda session: lifecycle.settle(session, job_id, "stale", S.SUCCEEDED),
        lambda session: lifecycle.requeue(session, job_id, "stale"),
    ):
        with pytest.raises(LeaseLost), database.writing() as session:
            write(session)
    with database.writing() as session:
        assert events.append(session, job_id, "late", token="stale") is None
    after = load(database, job_id)
    for column in inspect(Job).column_attrs:
        assert getattr(after, column.key) == getattr(before, column.key), column.key


def test_renewing_prolongs_and_tells_the_state(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()
    force(database, job_id, S.CANCELLING, token=TOKEN, lease=-5)
    with database.writing() as session:
        assert lifecycle.renew(session, job_id, TOKEN, lease_seconds=60).state is S.CANCELLING
        assert lifecycle.expired(session) == []


def test_settling_ends_the_lease(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()
    force(database, job_id, S.RUNNING, token=TOKEN)
    with database.writing() as session:
        lifecycle.settle(session, job_id, TOKEN, S.FAILED, error={"code": "c", "message": "m", "param": None})
    job = load(database, job_id)
    assert (job.lease_token, job.lease_expires_at) == (None, None)
    assert job.error == {"code": "c", "message": "m", "param": None}
    assert job.finished_at is not None


@pytest.mark.parametrize(("counted", "attempt"), [(True, 1), (False, 0)])
def test_requeue_counts_the_attempt_unless_told_not_to(
    database: Database, submit: Callable[[], str], rung: list[str], counted: bool, attempt: int
) -> None:
    job_id = submit()
    with database.writing() as session:
        job = lifecycle.claim(session, job_id, lease_seconds=60)
        assert job is not None
        assert job.lease_token is not None
        lifecycle.requeue(session, job_id, job.lease_token, counted=counted)
    back = load(database, job_id)
    assert (back.state, back.attempt, back.lease_token) == (S.QUEUED, attempt, None)
    assert rung == [job_id, job_id]


def test_take_back_fails_a_job_without_attempts_left(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()
    force(database, job_id, S.RUNNING, token=TOKEN, lease=-1)
    with database.writing() as session:
        (job,) = lifecycle.expired(session)
        assert lifecycle.take_back(session, job, max_attempts=0) is S.FAILED
    job = load(database, job_id)
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_take_back_leaves_a_job_whose_lease_was_renewed_meanwhile(
    database: Database, submit: Callable[[], str]
) -> None:
    job_id = submit()
    force(database, job_id, S.RUNNING, token=TOKEN, lease=-1)
    with database.reading() as session:
        (seen,) = lifecycle.expired(session)
    with database.writing() as session:
        lifecycle.renew(session, job_id, TOKEN, lease_seconds=60)
    with database.writing() as session:
        assert lifecycle.take_back(session, seen, max_attempts=3) is None
    assert load(database, job_id).state == S.RUNNING


def test_unrung_finds_queued_jobs_that_wait_in_silence_once(database: Database, submit: Callable[[], str]) -> None:
    silent, running, fresh = submit(), submit(), submit()
    with database.writing() as session:
        for job_id in (silent, running):
            session.get_one(Job, job_id).rung_at = database_now() - 100
    force(database, running, S.RUNNING, token=TOKEN)
    with database.writing() as session:
        assert lifecycle.unrung(session, older_than_seconds=50) == [silent]
    with database.writing() as session:
        assert lifecycle.unrung(session, older_than_seconds=50) == []
    assert load(database, fresh).state == S.QUEUED


def test_events_have_no_gap_whoever_writes(database: Database, submit: Callable[[], str]) -> None:
    job_id = submit()

    def write(writer: int) -> list[int | None]:
        seqs = []
        for number in range(10):
            with database.writing() as session:
                seqs.append(events.append(session, job_id, f"{writer}-{number}"))
        return seqs

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(write, range(4)))
    assert sorted(seq for seqs in written for seq in seqs if seq) == list(range(2, 42))
    assert all(seqs == sorted(seqs, key=lambda seq: seq or 0) for seqs in written)
    with database.reading() as session:
        told = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)).all()
    assert [event.seq for event in told] == list(range(1, 42))
    assert load(database, job_id).event_seq == 41


def test_event_ids_round_trip() -> None:
    event = events.event_id("ftjob-abc", 12)
    assert event == "ftevent-abc-12"
    assert events.seq_of("ftjob-abc", event) == 12
    for wrong in ("ftevent-abd-12", "ftevent-abc-", "ftevent-abc-x", "ftevent-abc--1", ""):
        assert events.seq_of("ftjob-abc", wrong) is None


def test_steps_without_a_checkpoint_are_lost_with_the_attempt(database: Database, submit: Callable[[], str]) -> None:
    """So a stop does not publish what is not there."""
    job_id = submit()
    with database.writing() as session:
        job = lifecycle.claim(session, job_id, lease_seconds=60)
        assert job is not None and job.lease_token is not None
        token = job.lease_token
        lifecycle.record(session, job_id, token, stage=JobStage.FINETUNE, step=49)
        lifecycle.requeue(session, job_id, token)
    assert load(database, job_id).step == 0
    with pytest.raises(JobConflict, match="trained no step yet"), database.writing() as session:
        lifecycle.request_stop(session, job_id)

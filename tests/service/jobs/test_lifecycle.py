"""Every writer against every state; claims under contention; leases that ran out or were lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, JobEvent
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import events, lifecycle, queue
from jenga_core.service.jobs.lifecycle import JobConflict, LeaseLost
from jenga_core.service.jobs.state import ALLOWED, JobState
from jenga_core.service.settings import Settings
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


HELD_OR_TOKEN = {to: {source: to for source in S if to in ALLOWED[source]} for to in S}
WRITERS: dict[str, tuple[Callable[[Session, str], object], dict[JobState, JobState], set[JobState]]] = {
    # name: (what it does, the moves it must make, the states in which doing nothing is fine; elsewhere it must raise)
    "claim": (lambda session, _: lifecycle.claim(session, lease_seconds=9), {S.QUEUED: S.RUNNING}, set(S) - {S.QUEUED}),
    "succeed": (settle(S.SUCCEEDED), HELD_OR_TOKEN[S.SUCCEEDED], set()),
    "fail": (settle(S.FAILED), HELD_OR_TOKEN[S.FAILED], set()),
    "settle_cancelled": (settle(S.CANCELLED), HELD_OR_TOKEN[S.CANCELLED], set()),
    "requeue": (lambda session, job_id: lifecycle.requeue(session, job_id, TOKEN), HELD_OR_TOKEN[S.QUEUED], set()),
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
        force(database, job_id, source, token=TOKEN, lease=-1)
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
    later = {(S.QUEUED, S.PAUSED), (S.RUNNING, S.PAUSING)}  # pausing has states but no writer yet
    for source in S:
        for to in S:
            assert ((source, to) in made | later) == (to in ALLOWED[source]), (source, to)


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


def test_claims_come_in_order_of_creation(database: Database, submit: Callable[[], str]) -> None:
    submitted = [submit() for _ in range(4)]
    claimed = []
    for _ in submitted:
        with database.writing() as session:
            job = lifecycle.claim(session, lease_seconds=60)
            assert job is not None
            assert (job.state, job.attempt) == (S.RUNNING, 1)
            claimed.append(job.id)
    assert claimed == submitted
    with database.writing() as session:
        assert lifecycle.claim(session, lease_seconds=60) is None


def test_four_claimers_never_get_the_same_job(database: Database, submit: Callable[[], str]) -> None:
    submitted = {submit() for _ in range(30)}

    def claim_all() -> Iterator[tuple[str, str]]:
        for _ in range(100):
            with database.writing() as session:
                job = lifecycle.claim(session, lease_seconds=60)
            if job is None:
                with database.reading() as session:  # PostgreSQL skips rows that others are looking at
                    if not session.scalar(select(func.count()).where(Job.state == S.QUEUED)):
                        return
            else:
                assert job.lease_token is not None
                yield job.id, job.lease_token

    with ThreadPoolExecutor(4) as pool:
        claimed = [pair for claims in pool.map(lambda _: list(claim_all()), range(4)) for pair in claims]
    assert len(claimed) == 30
    assert {job_id for job_id, _ in claimed} == submitted
    assert len({token for _, token in claimed}) == 30


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
        assert lifecycle.renew(session, job_id, TOKEN, lease_seconds=60) is S.CANCELLING
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
        job = lifecycle.claim(session, lease_seconds=60)
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

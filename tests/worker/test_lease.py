"""A lease outlives a database that is away for a moment, and ends when it is away for longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jenga_core.service.db.models import Job
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import lifecycle
from jenga_core.service.jobs.lifecycle import LeaseLost
from jenga_core.service.jobs.state import JobState
from tests.support.jobs import force
from worker import lease as lease_module
from worker.lease import Lease


class Flaky(Database):
    """A database that refuses the next `failures` transactions."""

    failures = 0

    @contextmanager
    def writing(self) -> Iterator[Session]:
        if self.failures > 0:
            self.failures -= 1
            raise OperationalError("UPDATE", {}, Exception("server closed the connection"))
        with super().writing() as session:
            yield session


@pytest.fixture
def flaky(database_url: str) -> Iterator[Flaky]:
    made = Flaky(database_url)
    yield made
    made.dispose()


@pytest.fixture
def lease(flaky: Flaky, submit: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Lease:
    monkeypatch.setattr(lease_module, "RETRY_SECONDS", 0.01)
    job_id = submit("succeed")
    force(flaky, job_id, JobState.RUNNING, token="held")
    return Lease(flaky, job_id, "held", seconds=30, claimed_at=time.monotonic())


def record_step(lease: Lease, step: int) -> None:
    lease.write(lambda session: lifecycle.record(session, lease.job_id, lease.token, step=step))


def test_a_write_is_tried_again(lease: Lease, flaky: Flaky, job: Callable[[str], Job]) -> None:
    flaky.failures = 3
    record_step(lease, 5)
    assert job(lease.job_id).step == 5
    assert flaky.failures == 0


def test_it_ends_with_the_lease(flaky: Flaky, lease: Lease, job: Callable[[str], Job]) -> None:
    expired = Lease(flaky, lease.job_id, "held", seconds=30, claimed_at=time.monotonic() - 31)
    flaky.failures = 10**6
    with pytest.raises(LeaseLost):
        record_step(expired, 5)
    assert job(lease.job_id).step == 0


def test_it_knows_the_state(lease: Lease, flaky: Flaky) -> None:
    with flaky.writing() as session:
        lifecycle.request_cancel(session, lease.job_id)
    assert lease.state is JobState.RUNNING
    record_step(lease, 1)
    assert lease.state is JobState.CANCELLING


def test_it_is_renewed_while_something_long_goes_on(flaky: Flaky, lease: Lease) -> None:
    short = Lease(flaky, lease.job_id, "held", seconds=0.4, claimed_at=time.monotonic())
    assert short.during(lambda: time.sleep(1.2) or "stored") == "stored"
    assert short.ends > time.monotonic()
    with pytest.raises(OSError, match="full"):
        short.during(lambda: (_ for _ in ()).throw(OSError("the disk is full")))
    force(flaky, lease.job_id, JobState.RUNNING, token="another's")
    with pytest.raises(LeaseLost):
        short.during(lambda: time.sleep(0.5))

"""A supervisor's hold on one job: every write it makes passes through here.

Each write is one transaction that begins by renewing the lease. That proves that the job is still ours, locks its row
until the commit (so nobody can take the job back halfway), and tells in which state it is. Rows of other tables written
in the same transaction need no guard of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jenga_core.service.db.session import Database
from jenga_core.service.jobs import lifecycle
from jenga_core.service.jobs.lifecycle import LeaseLost, Wishes
from jenga_core.service.jobs.state import JobState

RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


T = TypeVar("T")


class Lease:
    """The token, and how long it is certain to hold by our own monotonic clock.

    `claimed_at` is that clock from before the claim, so that we never believe in a lease longer than the database does.
    """

    def __init__(self, database: Database, job_id: str, token: str, *, seconds: float, claimed_at: float) -> None:
        self.job_id = job_id
        self.token = token
        self.seconds = seconds
        self.wishes = Wishes(JobState.RUNNING)
        """What is asked of the job, as of the newest write; inside its body, locked."""
        self._database = database
        self._ends = claimed_at + seconds

    @property
    def state(self) -> JobState:
        """As of the newest write."""
        return self.wishes.state

    @property
    def ends(self) -> float:
        """Until when it certainly holds, by time.monotonic()."""
        return self._ends

    def during(self, body: Callable[[], T]) -> T:
        """Run `body` in a thread of its own, renewing meanwhile, however long it takes. Raises LeaseLost, or what it
        raises."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(body)
            while not wait([running], timeout=self.seconds / 4).done:
                self.write(lambda session: None)
            return running.result()

    def write(self, body: Callable[[Session], None]) -> None:
        """Renew, look at the job's state, and run `body(session)`, in one transaction.

        While the database is away this tries again (`body` may run more than once) for as long as the lease lasts.

        Raises:
            LeaseLost: somebody took the job, or nothing could be written until the lease ran out.
        """
        while True:
            before = time.monotonic()
            try:
                with self._database.writing() as session:
                    self.wishes = lifecycle.renew(session, self.job_id, self.token, lease_seconds=self.seconds)
                    body(session)
            except OperationalError as error:
                if time.monotonic() + RETRY_SECONDS > self._ends:
                    raise LeaseLost(self.job_id) from error
                log.warning("job %s: not written, trying again: %s", self.job_id, error.orig)
                time.sleep(RETRY_SECONDS)
            else:
                self._ends = before + self.seconds
                return

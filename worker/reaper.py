"""What nobody else is left to do: jobs of dead workers, and doorbells that were lost.

Runs every few seconds in the ops worker, never behind training jobs. Running it twice, or on two machines, is harmless.
"""

from __future__ import annotations

import logging

from jenga_core.service.db.session import Database
from jenga_core.service.fleet import registration
from jenga_core.service.jobs import lifecycle, queue
from jenga_core.service.settings import Settings

RING_AGAIN_SECONDS = 5.0
"""A job still queued so long after its doorbell is rung for again. With the clock's own interval, a lost message is
replaced within ten seconds."""

log = logging.getLogger(__name__)


def reap(settings: Settings, database: Database) -> None:
    """Take back jobs whose lease ran out; ring for queued jobs that wait in silence."""
    with database.writing() as session:
        for job in lifecycle.expired(session):
            state = lifecycle.take_back(session, job, max_attempts=settings.max_attempts)
            if state is not None:
                log.warning("job %s: its worker was lost in attempt %d; now %s", job.id, job.attempt, state)
    with database.writing() as session:
        unheard = lifecycle.unrung(session, older_than_seconds=RING_AGAIN_SECONDS)
        free = registration.free_devices(session)
    # One doorbell for each device that could take a job is enough, and one in any case: who hears it looks at them all.
    for job_id in unheard[: max(0, max(free, 1) - queue.pending())] if unheard else []:
        queue.ring(job_id)

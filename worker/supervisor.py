"""A job from claim to settlement: the body of the Celery task.

    claim -> spec.json -> trainer process -> relay what it says, renew the lease, pass on a wish to stop -> settle

Nothing here trains and nothing imports torch. Whatever the trainer does (raise, run out of memory, hang, be killed),
this process lives, reaps it and goes on to the next job. Losing the lease means that the job is no longer ours: the
trainer is killed and nothing more is written.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import select

from jenga_core.config import JengaConfig
from jenga_core.errors import JengaError
from jenga_core.service.db.models import Job, JobCheckpoint
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.jobs import events, lifecycle
from jenga_core.service.jobs.lifecycle import LeaseLost
from jenga_core.service.jobs.state import JobState
from jenga_core.service.models import predictors, registry
from jenga_core.service.settings import Settings
from worker import gpus, host_memory, settlement
from worker.child import Child
from worker.lease import Lease
from worker.protocol import ErrorMessage, EventMessage, Message, TrainerSpec
from worker.relay import Relay, parse
from worker.stop import Stop

TRAINER = (sys.executable, "-m", "worker.trainer")
GRACE_SECONDS = 20.0
"""Between SIGTERM, on which a trainer stops at its next step, and SIGKILL."""

TICK_SECONDS = 2.0
"""Longest time until a cancel request or a shutdown is noticed."""

log = logging.getLogger(__name__)


class Supervisor:
    """Runs queued jobs one after another on this machine."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        stop: Stop,
        *,
        command: Sequence[str] = TRAINER,
        grace_seconds: float = GRACE_SECONDS,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self.settings = settings
        self.database = database
        self.stop = stop
        self.command = command
        self.grace_seconds = grace_seconds
        self.tick_seconds = min(tick_seconds, settings.lease_seconds / 3)

    def drain(self) -> list[str]:
        """Run jobs until none is queued or a stop was asked; return their ids. One doorbell is enough for a burst."""
        ran = []
        while (job_id := self.run_next()) is not None:
            ran.append(job_id)
        return ran

    def run_next(self) -> str | None:
        """Claim the oldest queued job and see it through this attempt; None when there was nothing to do."""
        with gpus.reserve(self.settings, self.stop) as place:
            if place is None or self.stop.is_set():
                return None
            claimed = self._claim()
            if claimed is None:
                return None
            job, lease = claimed
            log.info("job %s: attempt %d on %s", job.id, job.attempt, place.device.name)
            try:
                self._run(job, lease, place)
            except LeaseLost:
                log.warning("job %s: lease lost; its trainer is gone and this worker leaves it", job.id)
            return job.id

    def _claim(self) -> tuple[Job, Lease] | None:
        seconds = self.settings.lease_seconds
        before = time.monotonic()
        with self.database.writing() as session:
            job = lifecycle.claim(session, lease_seconds=seconds)
            if job is None:
                return None
            again = f" again (attempt {job.attempt} of {self.settings.max_attempts})" if job.attempt > 1 else ""
            events.append(session, job.id, f"Fine-tuning job started{again}")
        assert job.lease_token is not None
        return job, Lease(self.database, job.id, job.lease_token, seconds=seconds, claimed_at=before)

    def _run(self, job: Job, lease: Lease, place: gpus.Place) -> None:
        try:
            folder = self._prepare(job)
        except JengaError as error:
            reason = ErrorMessage(code=error.code, message=error.message, param=error.param)
            lease.write(lambda session: settlement.fail(session, job, reason))
            return
        relay = Relay(job)
        oom_kills = host_memory.oom_kills()
        child = Child(self.command, folder, environment=place.environment, keep_open=place.keep_open)
        try:
            asked_to_stop = self._watch(child, lease, relay)
        finally:
            exit_code = child.end()
            last = [parse(line) for line in child.rest()]
        lease.write(lambda session: relay.write(session, last))
        log.info("job %s: trainer %d ended with %d", job.id, child.pid, exit_code)
        ending = settlement.Ending(
            exit_code=exit_code,
            result=relay.result,
            error=relay.error,
            asked_to_stop=asked_to_stop,
            out_of_memory=exit_code == -signal.SIGKILL and (host_memory.oom_kills() or 0) > (oom_kills or 0),
            log_tail=child.log_tail(),
        )
        settlement.settle(lease, self.settings, job, ending)

    def _watch(self, child: Child, lease: Lease, relay: Relay) -> bool:
        """Relay and renew until the trainer has ended; return whether it was asked to."""
        asked_at: float | None = None
        killed = False
        said: list[Message] = []
        while child.is_running():
            said += [parse(line) for line in child.read(self.tick_seconds)]
            lease.write(partial(relay.write, messages=said))
            said = []
            if asked_at is None and (lease.state is JobState.CANCELLING or self.stop.is_set()):
                asked_at = time.monotonic()
                child.signal(signal.SIGTERM)
                said.append(EventMessage(level="warn", message="The trainer was asked to stop (SIGTERM)"))
            elif asked_at is not None and not killed and time.monotonic() > asked_at + self.grace_seconds:
                killed = True
                child.signal(signal.SIGKILL)
                reason = f"The trainer did not stop within {self.grace_seconds:g} s and was killed (SIGKILL)"
                said.append(EventMessage(level="warn", message=reason))
        lease.write(partial(relay.write, messages=said))
        return asked_at is not None

    def _prepare(self, job: Job) -> Path:
        """Write the job's spec.json; return the job's folder."""
        store = FileStore(self.settings)
        folder = self.settings.folder("jobs", job.id)
        with self.database.reading() as session:
            entry = registry.get(session, job.model)
            steps = select(JobCheckpoint).where(JobCheckpoint.job_id == job.id).order_by(JobCheckpoint.step.desc())
            saved = [folder / checkpoint.folder for checkpoint in session.scalars(steps)]
        spec = TrainerSpec(
            job_id=job.id,
            attempt=job.attempt,
            model_name=job.model,
            model_folder=registry.folder_of(self.settings, entry),
            fingerprint=entry.fingerprint,
            predictors_folder=predictors.folder_of(self.settings, job.team_id, entry.fingerprint),
            training_path=store.path(job.training_file),
            validation_path=store.path(job.validation_file) if job.validation_file else None,
            config=JengaConfig.parse(job.config),
            hyperparameters=job.hyperparameters,
            seed=job.seed,
            resume_from=next((path for path in saved if path.is_dir()), None),
        )
        (folder / "spec.json").write_text(spec.model_dump_json(indent=2))
        return folder

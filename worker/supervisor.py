"""A job from claim to settlement: the body of the Celery task.

    claim -> spec.json -> trainer process -> relay what it says, renew the lease, pass on what is wished -> settle

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from jenga_core.config import JengaConfig
from jenga_core.errors import JengaError
from jenga_core.service.db.models import Job, JobCheckpoint
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.fleet import placement
from jenga_core.service.fleet.placement import Choice
from jenga_core.service.jobs import events, lifecycle
from jenga_core.service.jobs.lifecycle import LeaseLost
from jenga_core.service.models import predictors, registry
from jenga_core.service.settings import Settings
from worker import host_memory, ladder, settlement, tidying
from worker.child import Child
from worker.ladder import Ladder
from worker.lease import Lease
from worker.protocol import ErrorMessage, Message, TrainerSpec
from worker.relay import Relay, parse
from worker.stop import Stop

TRAINER = (sys.executable, "-m", "worker.trainer")

TICK_SECONDS = 2.0
"""Longest time until a wish or a shutdown is noticed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claimed:
    """A job of ours, and where it runs."""

    job: Job
    lease: Lease
    choice: Choice

    @property
    def environment(self) -> dict[str, str]:
        """Shows the trainer its devices and no others."""
        return {"CUDA_VISIBLE_DEVICES": "" if self.choice.on_cpu else ",".join(self.choice.devices)}


class Supervisor:
    """Runs queued jobs one after another on this machine's devices, as the worker `worker_id` of the fleet."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        stop: Stop,
        worker_id: str,
        *,
        command: Sequence[str] = TRAINER,
        grace_seconds: float = ladder.GRACE_SECONDS,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self.settings = settings
        self.database = database
        self.stop = stop
        self.worker_id = worker_id
        self.command = command
        self.grace_seconds = grace_seconds
        self.tick_seconds = min(tick_seconds, settings.lease_seconds / 3)

    def drain(self) -> list[str]:
        """Run jobs until none can start here or a stop was asked; return their ids. One doorbell is enough for a
        burst."""
        ran = []
        while (job_id := self.run_next()) is not None:
            ran.append(job_id)
        return ran

    def run_next(self) -> str | None:
        """Claim the job whose turn it is on this machine and see it through this attempt; None when there is none."""
        if self.stop.is_set():
            return None
        claimed = self._claim()
        if claimed is None:
            return None
        job = claimed.job
        log.info("job %s: attempt %d on %s", job.id, job.attempt, ", ".join(claimed.choice.devices))
        try:
            self._run(claimed)
        except LeaseLost:
            log.warning("job %s: lease lost; its trainer is gone and this worker leaves it", job.id)
        return job.id

    def _claim(self) -> Claimed | None:
        seconds = self.settings.lease_seconds
        before = time.monotonic()
        try:
            with self.database.writing() as session:
                choice = placement.choose(session, self.worker_id)
                if choice is None:
                    return None
                job = lifecycle.claim(
                    session, choice.job_id, lease_seconds=seconds, devices=choice.devices, filler=choice.filler
                )
                if job is None:
                    return None
                again = f" again (attempt {job.attempt} of {self.settings.max_attempts})" if job.attempt > 1 else ""
                before_turn = ", before its turn: it gives way when the first in line can start" if job.filler else ""
                started = f"Fine-tuning job started{again}{before_turn}"
                events.append(session, job.id, started, data={"devices": list(choice.devices)})
        except IntegrityError:  # another worker took one of the devices at this moment
            return None
        assert job.lease_token is not None
        lease = Lease(self.database, job.id, job.lease_token, seconds=seconds, claimed_at=before)
        return Claimed(job, lease, choice)

    def _run(self, claimed: Claimed) -> None:
        job, lease = claimed.job, claimed.lease
        try:
            folder = self._prepare(job)
        except JengaError as error:
            reason = ErrorMessage(code=error.code, message=error.message, param=error.param)
            lease.write(lambda session: settlement.fail(session, job, reason))
            return
        except OSError as error:
            full = ErrorMessage(code="job_folder", message=f"the job's folder could not be written: {error}")
            lease.write(lambda session: settlement.fail(session, job, full))
            return
        relay = Relay(job)
        oom_kills = host_memory.oom_kills()
        child = Child(self.command, folder, environment=claimed.environment, lease_ends=lease.ends)
        steps = Ladder(self.grace_seconds)
        try:
            self._watch(child, lease, relay, steps)
        finally:
            exit_code = child.end()
            last = [parse(line) for line in child.rest()]
            tidying.clear_cache(self.settings, job.id)  # every attempt encodes anew
        lease.write(lambda session: relay.write(session, last))
        log.info("job %s: trainer %d ended with %d", job.id, child.pid, exit_code)
        ending = settlement.Ending(
            exit_code=exit_code,
            result=relay.result,
            error=relay.error,
            asked_to_leave=steps.asked,
            out_of_memory=(
                exit_code == -signal.SIGKILL and not steps.killed and (host_memory.oom_kills() or 0) > (oom_kills or 0)
            ),
            log_tail=child.log_tail(),
        )
        settlement.settle(lease, self.settings, job, ending)

    def _watch(self, child: Child, lease: Lease, relay: Relay, steps: Ladder) -> None:
        """Relay, renew and pass wishes on until the trainer has ended."""
        said: list[Message] = []
        while child.is_running():
            said += [parse(line) for line in child.read(self.tick_seconds)]
            lease.write(partial(relay.write, messages=said))
            child.renewed(lease.ends)
            child.rotate_log()
            said = steps.climb(child, lease.wishes, shutting_down=self.stop.is_set())
        lease.write(partial(relay.write, messages=said))

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
            checkpoints=[path for path in saved if path.is_dir()],
            gpus=job.gpus,
            finish=job.stop_asked_at is not None,
        )
        (folder / "spec.json").write_text(spec.model_dump_json(indent=2))
        return folder

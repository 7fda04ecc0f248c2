"""How a job ends, given how its trainer ended.

the trainer                             the job
exit 0 with a result                    succeeded (also while cancelling or pausing: it was first)
an error message                        failed, with its code
memory ran out, of GPU or host          failed, out_of_memory, with the numbers; or, once, queued again and smaller
any other non-zero exit                 failed, with the last lines it printed
gone because of a cancel request        cancelled
gone because of a pause request         paused, the attempt not counted
gone because the worker shuts down      queued again, the attempt not counted
gone because another job is first       queued again, the attempt not counted
killed by any other signal              queued again while attempts are left, then failed, trainer_killed
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import FineTunedModel, Job, JobCheckpoint, StoredFile, Team
from jenga_core.service.files.store import FileStore
from jenga_core.service.ids import new_id
from jenga_core.service.jobs import events, lifecycle
from jenga_core.service.jobs.lifecycle import Wishes
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from worker import out_of_memory
from worker.lease import Lease
from worker.protocol import EXIT_OK, EXIT_STOPPED, ErrorMessage, ResultMessage
from worker.relay import storable

RESULTS = ("metrics.csv", "adapter.tar.gz")
"""What a successful trainer leaves in `output/`, in the order of the job's result_files."""


@dataclass(frozen=True)
class Ending:
    """What is known of a trainer that ended."""

    exit_code: int
    """As subprocess has it: negative for a signal."""

    result: ResultMessage | None = None
    error: ErrorMessage | None = None
    asked_to_leave: bool = False
    """The supervisor sent SIGTERM: pause, cancel, its own shutdown, or the first in line needs the devices."""

    out_of_memory: bool = False
    """The kernel killed a process for want of memory meanwhile."""

    log_tail: str = ""

    @property
    def ran_out_of_memory(self) -> bool:
        """On the GPU, as the trainer told, or on the host."""
        return self.out_of_memory or (self.error is not None and self.error.code == "out_of_memory")


def settle(lease: Lease, settings: Settings, job: Job, ending: Ending) -> None:
    """Write the end of this attempt. Raises LeaseLost."""
    if ending.exit_code == EXIT_OK and ending.result is not None:
        output = settings.folder("jobs", job.id, "output")
        missing = [name for name in RESULTS if not (output / name).is_file()]
        if not missing:
            _publish(lease, settings, job, ending.result)
            return
        error = ErrorMessage(code="trainer_error", message=f"the trainer left no {' and no '.join(missing)}")
        lease.write(lambda session: fail(session, job, error))
        return
    lease.write(lambda session: _without_result(session, lease.wishes, settings, job, ending))


def fail(session: Session, job: Job, error: ErrorMessage) -> None:
    """Settle as failed; the event tells what the job's `error` holds."""
    assert job.lease_token is not None
    error = ErrorMessage(code=error.code, message=storable(error.message), param=error.param)
    events.append(session, job.id, f"The job failed: {error.message}", level="error", data={"code": error.code})
    lifecycle.settle(
        session, job.id, job.lease_token, JobState.FAILED, error=error.model_dump(include={"code", "message", "param"})
    )


def _without_result(session: Session, wishes: Wishes, settings: Settings, job: Job, ending: Ending) -> None:
    assert job.lease_token is not None
    if ending.ran_out_of_memory:
        _out_of_memory(session, wishes, settings, job, ending)
    elif ending.error is None and wishes.state is JobState.CANCELLING:
        events.append(session, job.id, "The job was cancelled", level="warn")
        lifecycle.settle(session, job.id, job.lease_token, JobState.CANCELLED)
    elif ending.error is None and wishes.state is JobState.PAUSING:
        events.append(session, job.id, f"The job is paused{_goes_on_from(session, job)}")
        lifecycle.pause(session, job.id, job.lease_token)
    elif ending.error is None and ending.asked_to_leave:
        why = "The first job in line needs the devices" if wishes.give_way else "The worker is shutting down"
        events.append(session, job.id, f"{why}; the job goes back to the queue", level="warn")
        lifecycle.requeue(session, job.id, job.lease_token, counted=False)
    elif (error := _reason(ending)) is not None:
        fail(session, job, error)
    else:
        died = f"The trainer was killed by {_signal_name(ending)} in attempt {job.attempt} of {settings.max_attempts}"
        data = {"printed_last": storable(ending.log_tail)} if ending.log_tail else None
        if job.attempt < settings.max_attempts:
            events.append(session, job.id, f"{died}; the job goes back to the queue", level="warn", data=data)
            lifecycle.requeue(session, job.id, job.lease_token)
        else:
            fail(session, job, ErrorMessage(code="trainer_killed", message=died))


def _goes_on_from(session: Session, job: Job) -> str:
    newest = select(func.max(JobCheckpoint.step)).where(JobCheckpoint.job_id == job.id)
    step = session.scalars(newest).one()
    return "; it has no checkpoint and will begin anew" if step is None else f"; it will go on after step {step}"


def _out_of_memory(session: Session, wishes: Wishes, settings: Settings, job: Job, ending: Ending) -> None:
    """Never tried again as it was. `oom_policy` "shrink" starts it once more with less."""
    assert job.lease_token is not None
    message = out_of_memory.explain(session, settings, job, ending.error)
    smaller = out_of_memory.smaller(session, settings, job, ending.error)
    if smaller is None or wishes.state is not JobState.RUNNING:
        fail(session, job, ErrorMessage(code="out_of_memory", message=message))
        return
    changes = "recompute='full'"
    if smaller["config"]["offload"] != job.config.get("offload", False):
        changes += " and offload" if smaller["config"]["offload"] else " and without offload"
    told = f"{message}. oom_policy is 'shrink': the job goes back to the queue, once, with {changes}"
    events.append(session, job.id, storable(told), level="warn")
    lifecycle.requeue(session, job.id, job.lease_token, counted=False, shrunk=True, **smaller)


def _reason(ending: Ending) -> ErrorMessage | None:
    """Why trying again would not help; None when it may."""
    if ending.error is not None:
        return ending.error
    if ending.exit_code < 0 or ending.exit_code == EXIT_STOPPED:
        return None
    if ending.exit_code == EXIT_OK:
        return ErrorMessage(code="trainer_error", message="the trainer exited without a result")
    last = ending.log_tail or "it printed nothing"
    return ErrorMessage(code="trainer_error", message=f"the trainer exited with code {ending.exit_code}: {last}")


def _signal_name(ending: Ending) -> str:
    if ending.exit_code == EXIT_STOPPED:
        return signal.SIGTERM.name  # it caught the signal and left in good order, but nobody here had sent one
    try:
        return signal.Signals(-ending.exit_code).name
    except ValueError:
        return f"signal {-ending.exit_code}"


def _publish(lease: Lease, settings: Settings, job: Job, result: ResultMessage) -> None:
    """Register the results and settle as succeeded, in one transaction: all of it is there, or nothing."""
    store = FileStore(settings)
    output = settings.folder("jobs", job.id, "output")
    stored = {name: new_id("file-") for name in RESULTS}
    try:
        sizes = lease.during(lambda: {name: store.copy_in(file_id, output / name) for name, file_id in stored.items()})
    except OSError as error:
        for file_id in stored.values():
            store.delete(file_id)
        reason = ErrorMessage(code="results_not_stored", message=f"the results could not be stored: {error}")
        lease.write(lambda session: fail(session, job, reason))
        return
    lease.write(lambda session: _register(session, job, result, stored, sizes))


def _register(session: Session, job: Job, result: ResultMessage, stored: dict[str, str], sizes: dict[str, int]) -> None:
    assert job.lease_token is not None
    for name, file_id in stored.items():
        session.add(
            StoredFile(
                id=file_id,
                team_id=job.team_id,
                purpose="fine-tune-results",
                filename=name,
                bytes=sizes[name],
                status="processed",
                created_at=database_now(),
            )
        )
    team = session.get_one(Team, job.team_id)
    name = f"ft:{job.model}:{team.name}:{job.suffix or ''}:{job.id.removeprefix('ftjob-')[:8]}"
    session.add(
        FineTunedModel(id=name, team_id=team.id, job_id=job.id, base_model=job.model, created_at=database_now())
    )
    events.append(session, job.id, f"New fine-tuned model created: {name}")
    events.append(session, job.id, "The job has successfully completed")
    lifecycle.settle(
        session,
        job.id,
        job.lease_token,
        JobState.SUCCEEDED,
        fine_tuned_model=name,
        result_files=list(stored.values()),
        report=storable(result.report),
    )

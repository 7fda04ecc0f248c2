"""The Celery process.

    celery -A worker.app worker -Q run             as many jobs at a time as this machine has devices, or as -c says
    celery -A worker.app worker -B -Q ops -c 2     the reaper and its clock; exactly one per installation

Task arguments are named, and unknown ones are ignored, so that old and new workers understand each other's messages.
SIGTERM stops a worker: its trainers stop at their next step and their jobs go back to the queue.
"""

from __future__ import annotations

import logging
import signal
from functools import cache
from typing import Any

from celery import signals

from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.files.sweep import sweep
from jenga_core.service.jobs.queue import (
    DELIVER_TASK,
    OPS_QUEUE,
    REAP_TASK,
    RUN_QUEUE,
    RUN_TASK,
    SWEEP_TASK,
    TIDY_TASK,
    connect,
)
from jenga_core.service.processes import end_with_parent
from jenga_core.service.settings import Settings
from jenga_core.service.webhooks.delivery import deliver
from worker import devices, reaper, tidying
from worker.host import Host
from worker.stop import Stop
from worker.supervisor import TRAINER, Supervisor

REAP_EVERY_SECONDS = 3.0
DELIVER_EVERY_SECONDS = 5.0
SWEEP_EVERY_SECONDS = 60.0
TIDY_EVERY_SECONDS = 600.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

settings = Settings()
stop = Stop()
host = Host(settings)
trainer = TRAINER
app = connect(settings)
log = logging.getLogger(__name__)
app.conf.update(
    beat_schedule={
        name: {"task": task, "schedule": seconds, "options": {"queue": OPS_QUEUE, "expires": seconds}}
        for name, task, seconds in (
            ("reap", REAP_TASK, REAP_EVERY_SECONDS),
            ("deliver", DELIVER_TASK, DELIVER_EVERY_SECONDS),
            ("sweep", SWEEP_TASK, SWEEP_EVERY_SECONDS),
            ("tidy", TIDY_TASK, TIDY_EVERY_SECONDS),
        )
    },
    beat_schedule_filename=str(settings.folder("beat") / "schedule"),
    worker_redirect_stdouts=False,
    worker_log_format=LOG_FORMAT,
    worker_task_log_format=LOG_FORMAT,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
)


@cache
def database() -> Database:
    """This process's connections; opened after Celery has forked, because connections must not be shared."""
    return Database(settings.database)


@app.task(name=RUN_TASK)
def run(job_id: str | None = None, **_newer: Any) -> list[str]:
    """Run queued jobs until none can start here. `job_id` says why the bell rang; placement says whose turn it is."""
    return Supervisor(settings, database(), stop, host.id, command=trainer).drain()


@app.task(name=REAP_TASK)
def reap(**_newer: Any) -> None:
    """Look after lost jobs and lost doorbells."""
    reaper.reap(settings, database())


@app.task(name=DELIVER_TASK)
def deliver_webhooks(**_newer: Any) -> None:
    """Tell endpoints what they have not heard yet."""
    deliver(settings, database())


@app.task(name=SWEEP_TASK)
def sweep_files(**_newer: Any) -> None:
    """Remove files and uploads whose time is over, and what is left of old deliveries."""
    sweep(database(), FileStore(settings))


@app.task(name=TIDY_TASK)
def tidy(**_newer: Any) -> None:
    """Clear away what ended jobs and broken transactions left on the disk; keep logs short."""
    tidying.tidy(settings, database())


@signals.celeryd_init.connect
def _one_job_for_each_device(conf: Any, **_about: Any) -> None:
    """What holds unless the command line says -c; each job takes whole devices, so more could never run."""
    conf.worker_concurrency = len(devices.inventory())


@signals.after_setup_logger.connect
def _log_jobs_not_messages(**_about: Any) -> None:
    """The reaper's message comes every few seconds; that it came is no news."""
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.worker_init.connect
def _join_fleet(sender: Any, **_about: Any) -> None:
    """Before the first message is read: a bell that rings for a worker without devices would ring in vain."""
    if RUN_QUEUE not in sender.app.amqp.queues.consume_from:
        return
    try:
        reports = host.sign_on()
    except Exception:
        log.exception("not in the fleet yet; the heartbeat tries again")
    else:
        log.info("in the fleet as %s with %s", host.id, ", ".join(f"{each.name} ({each.uuid})" for each in reports))
    host.start()


@signals.worker_shutting_down.connect
def _tell_forks(**_about: Any) -> None:
    stop.set()
    host.drain()


@signals.worker_shutdown.connect
def _leave_fleet(**_about: Any) -> None:
    host.stop()


@signals.worker_process_init.connect
def _listen(**_about: Any) -> None:
    stop.only_listen()


@signals.beat_embedded_init.connect
def _end_with_ops(**_about: Any) -> None:
    """The clock is a fork of the ops worker; left alone it would go on ringing beside its successor's."""
    end_with_parent(signal.SIGKILL)

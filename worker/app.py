"""The Celery process.

    celery -A worker.app worker -Q run -c N        N jobs at a time on this machine
    celery -A worker.app worker -B -Q ops -c 1     the reaper and its clock; exactly one per installation

Task arguments are named, and unknown ones are ignored, so that old and new workers understand each other's messages.
SIGTERM stops a worker: its trainers stop at their next step and their jobs go back to the queue.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from celery import signals

from jenga_core.service.db.session import Database
from jenga_core.service.jobs.queue import OPS_QUEUE, REAP_TASK, RUN_TASK, connect
from jenga_core.service.settings import Settings
from worker import reaper
from worker.stop import Stop
from worker.supervisor import TRAINER, Supervisor

REAP_EVERY_SECONDS = 5.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

settings = Settings()
stop = Stop()
trainer = TRAINER
app = connect(settings)
app.conf.update(
    beat_schedule={
        "reap": {
            "task": REAP_TASK,
            "schedule": REAP_EVERY_SECONDS,
            "options": {"queue": OPS_QUEUE, "expires": REAP_EVERY_SECONDS},
        }
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
    """Run queued jobs until there are none. `job_id` says why the bell rang; whoever is first takes the oldest."""
    return Supervisor(settings, database(), stop, command=trainer).drain()


@app.task(name=REAP_TASK)
def reap(**_newer: Any) -> None:
    """Look after lost jobs and lost doorbells."""
    reaper.reap(settings, database())


@signals.after_setup_logger.connect
def _log_jobs_not_messages(**_about: Any) -> None:
    """The reaper's message comes every few seconds; that it came is no news."""
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.worker_shutting_down.connect
def _tell_forks(**_about: Any) -> None:
    stop.set()


@signals.worker_process_init.connect
def _listen(**_about: Any) -> None:
    stop.only_listen()

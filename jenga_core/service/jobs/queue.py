"""The doorbell: a Celery message that says "look at the queue". The database row is the queue.

A message may be lost, doubled or come late and nothing goes wrong: a supervisor that hears it claims the oldest queued
job, whichever that is, and a beat task rings again for jobs that nobody claimed. This file holds the Celery object and
the task *names*; the bodies live in `worker`.
"""

from __future__ import annotations

import logging
import time

from celery import Celery
from celery.exceptions import OperationalError
from kombu.exceptions import OperationalError as TransportError
from sqlalchemy import event
from sqlalchemy.orm import Session

from jenga_core.errors import ConfigError
from jenga_core.service.settings import Settings

RUN_TASK = "jenga.run"
REAP_TASK = "jenga.reap"
DELIVER_TASK = "jenga.deliver"
SWEEP_TASK = "jenga.sweep"
TIDY_TASK = "jenga.tidy"
RUN_QUEUE = "run"
OPS_QUEUE = "ops"

log = logging.getLogger(__name__)

celery_app = Celery("jenga", set_as_current=False)
celery_app.conf.update(
    # State lives in the database; messages carry ids only.
    task_serializer="json",
    accept_content=["json"],
    result_backend=None,
    task_ignore_result=True,
    # Acknowledge at once: with late acknowledgement, Redis hands a task that outlives the visibility timeout to a
    # second worker. Without prefetch no message sits unacknowledged behind a long job, which would be redelivered for
    # the same reason.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    task_acks_on_failure=True,
    task_acks_on_timeout=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    task_routes={
        RUN_TASK: {"queue": RUN_QUEUE},
        **{task: {"queue": OPS_QUEUE} for task in (REAP_TASK, DELIVER_TASK, SWEEP_TASK, TIDY_TASK)},
    },
    task_default_queue=RUN_QUEUE,
    broker_transport_options={
        "visibility_timeout": 3600,
        "socket_timeout": 30,
        "socket_connect_timeout": 1,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "global_keyprefix": "jenga:",
        # One more try and no pause before it: a bell that nobody hears must not keep a submit waiting.
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
    },
)

SILENCE_SECONDS = 5.0
"""After a bell was not heard, the broker is left alone for so long; the reaper rings again anyway."""

_silent_until = 0.0


def connect(settings: Settings) -> Celery:
    """Point the Celery app at the settings' broker and return it."""
    global _silent_until
    celery_app.conf.broker_url = settings.broker
    _silent_until = 0.0
    return celery_app


def check(settings: Settings) -> None:
    """Raise ConfigError when the settings' broker does not answer."""
    with connect(settings).connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1)
        except TransportError as error:
            raise ConfigError(
                f"the broker of JENGA_BROKER_URL does not answer ({error}); start it, or unset the variable: "
                "`jenga up` then starts a broker of its own"
            ) from error


def ring(job_id: str) -> bool:
    """Send one doorbell message. False (and a log line) when the broker cannot be reached, or could not a moment ago;
    the beat task rings again."""
    global _silent_until
    if not celery_app.conf.broker_url:
        log.warning("doorbell for %s not rung: no broker is configured; a beat task rings again", job_id)
        return False
    if time.monotonic() < _silent_until:
        return False
    try:
        celery_app.send_task(RUN_TASK, kwargs={"job_id": job_id}, retry=False)
    except (OperationalError, TransportError, OSError) as error:
        _silent_until = time.monotonic() + SILENCE_SECONDS
        log.warning("doorbell for %s not rung, the reaper will ring again: %s", job_id, error)
        return False
    return True


def pending() -> int:
    """Doorbell messages that no worker has taken yet; 0 when the broker cannot be reached."""
    with celery_app.connection_or_acquire() as connection:
        try:
            return connection.default_channel.queue_declare(RUN_QUEUE).message_count
        except (TransportError, *connection.connection_errors) as error:
            log.warning("doorbells not counted: %s", error)
            return 0


def ring_after_commit(session: Session, job_id: str) -> None:
    """Ring once the transaction of `session` has committed; never before, so nobody looks for a row that is not
    there."""

    def _ring(_session: Session) -> None:
        ring(job_id)

    event.listen(session, "after_commit", _ring, once=True)

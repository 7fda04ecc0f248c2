"""This worker in the fleet: signs on, beats, and signs off.

The beat is a thread of Celery's main process, so that it goes on while jobs run in the pool and stops when the worker
is killed or frozen. It opens a connection for each beat and closes it: a pool process that is forked in between
inherits none.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable, Collection
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jenga_core.service.db.models import Device, DeviceLease, Worker
from jenga_core.service.db.session import Database
from jenga_core.service.fleet import registration
from jenga_core.service.fleet.registration import Report
from jenga_core.service.ids import new_id
from jenga_core.service.settings import Settings
from worker import devices

PACKAGES = ("jenga", "torch", "triton", "transformers", "peft", "celery")
STOP_SECONDS = 10.0

log = logging.getLogger(__name__)


class Host:
    """One worker's entry in the fleet."""

    def __init__(
        self,
        settings: Settings,
        *,
        look: Callable[[Collection[str]], list[Report]] = devices.inventory,
        beat_seconds: float = registration.BEAT_SECONDS,
    ) -> None:
        self.id = new_id("worker-")
        self._database = Database(settings.database)
        self._look = look
        self._beat_seconds = beat_seconds
        self._wake = threading.Event()
        self._draining = self._ended = False
        self._thread: threading.Thread | None = None

    def sign_on(self) -> list[Report]:
        """Enter the fleet with this machine's devices; return them. Raises what the database or NVML raises."""
        try:
            with self._database.writing() as session:
                return self._tell(session)
        finally:
            self._database.dispose()

    def start(self) -> None:
        """Beat from now on."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Take no more jobs. Safe in a signal handler: the thread writes it."""
        self._draining = True
        self._wake.set()

    def stop(self) -> None:
        """Sign off, and end the thread."""
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._ended:
            self._wake.wait(self._beat_seconds)
            self._wake.clear()
            self._write(self._tell)
        self._write(lambda session: registration.sign_off(session, self.id))

    def _write(self, body: Callable[[Session], object]) -> None:
        """Try once; the next beat tries again."""
        try:
            with self._database.writing() as session:
                body(session)
        except DBAPIError as error:
            log.warning("heartbeat not written, trying again: %s", error.orig)
        except Exception:
            log.exception("heartbeat failed, trying again")
        finally:
            self._database.dispose()

    def _tell(self, session: Session) -> list[Report]:
        """Look at the devices and write what they look like; sign on when the fleet does not know this worker."""
        reports = self._look(list(session.scalars(select(DeviceLease.device_uuid))))
        _strike_off_the_dead(session, self.id, [report.uuid for report in reports])
        if not registration.beat(session, self.id, reports, draining=self._draining):
            registration.sign_on(
                session,
                self.id,
                host=platform.node(),
                pid=os.getpid(),
                versions=versions(),
                memory_bytes=devices.host_memory_bytes(),
            )
            registration.beat(session, self.id, reports)
        return reports


def _strike_off_the_dead(session: Session, worker_id: str, devices: Collection[str]) -> None:
    """Sign off workers of this host whose process is gone: their devices are this worker's at once.

    Another machine may have the same name, and another container the same process numbers; neither has our devices.
    """
    theirs = select(Device.worker_id).where(Device.uuid.in_(devices))
    others = select(Worker).where(
        Worker.host == platform.node(), Worker.id.in_(theirs), Worker.id != worker_id, registration.is_online()
    )
    for worker in session.scalars(others):
        if not _is_alive(worker.pid):
            registration.sign_off(session, worker.id)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def versions() -> dict[str, str]:
    """Of what training depends on; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if (driver := devices.driver_version()) is not None:
        found["driver"] = driver
    return found

"""A worker signs on, beats, survives what goes wrong, drains and signs off."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator

import pytest
from sqlalchemy import delete, select

from jenga_core.service.db.models import Device, Worker
from jenga_core.service.db.session import Database
from jenga_core.service.fleet import registration, repository
from jenga_core.service.fleet.registration import Report
from jenga_core.service.settings import Settings
from tests.support.fleet import gpus
from tests.support.processes import until
from worker.host import Host, versions

MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(settings: Settings) -> Iterator[MakeHost]:
    made: list[Host] = []

    def make(look: Callable[[Collection[str]], list[Report]] = lambda held: gpus("0")) -> Host:
        made.append(Host(settings, look=look, beat_seconds=0.05))
        return made[-1]

    yield make
    for host in made:
        host.stop()


def beats(database: Database, host: Host) -> float:
    with database.reading() as session:
        worker = session.get(Worker, host.id)
        return worker.heartbeat_at if worker else 0.0


def test_it_is_in_the_fleet_as_soon_as_it_has_signed_on(database: Database, make_host: MakeHost) -> None:
    host = make_host()
    assert [report.uuid for report in host.sign_on()] == ["GPU-0"]
    with database.reading() as session:
        (view,) = repository.fleet(session).workers
    assert (view.id, view.state, [device.id for device in view.devices]) == (host.id, "online", ["GPU-0"])
    assert view.versions == versions()
    assert {"python", "celery"} <= view.versions.keys()


def test_it_beats_drains_and_signs_off(database: Database, make_host: MakeHost) -> None:
    host = make_host()
    host.sign_on()
    first = beats(database, host)
    host.start()
    until(lambda: beats(database, host) > first)
    host.drain()
    until(lambda: _state(database) == "draining")
    host.stop()
    assert _state(database) == "lost"


def test_it_signs_on_again_when_it_was_struck_off(database: Database, make_host: MakeHost) -> None:
    host = make_host()
    host.sign_on()
    with database.writing() as session:
        session.execute(delete(Device))
        session.execute(delete(Worker))
    host.start()
    until(lambda: beats(database, host) > 0)
    with database.reading() as session:
        assert session.scalars(select(Device.uuid)).all() == ["GPU-0"]


def test_the_devices_of_a_worker_that_died_on_this_host_are_taken_over_at_once(
    database: Database, make_host: MakeHost
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with database.writing() as session:
        for worker_id, pid in (("worker-dead", gone.pid), ("worker-alive", os.getpid())):
            registration.sign_on(session, worker_id, host=platform.node(), pid=pid, versions={})
        registration.beat(session, "worker-dead", gpus("0"))
        registration.beat(session, "worker-alive", gpus("1"))
    host = make_host(lambda held: gpus("0", "1"))
    host.sign_on()
    with database.reading() as session:
        owners = {device.uuid: device.worker_id for device in session.scalars(select(Device))}
    assert owners == {"GPU-0": host.id, "GPU-1": "worker-alive"}


def test_a_look_that_fails_does_not_end_the_beating(database: Database, make_host: MakeHost) -> None:
    failures = iter([RuntimeError("GPU is lost")] * 3)

    def look(held: Collection[str]) -> list[Report]:
        for error in failures:
            raise error
        return gpus("0")

    host = make_host(look)
    with pytest.raises(RuntimeError, match="GPU is lost"):
        host.sign_on()
    host.start()
    until(lambda: beats(database, host) > 0)


def _state(database: Database) -> str:
    with database.reading() as session:
        (view,) = repository.fleet(session).workers
        return view.state

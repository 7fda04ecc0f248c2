"""Workers that tests put into the fleet."""

from __future__ import annotations

import os

from jenga_core.service.db.session import Database
from jenga_core.service.fleet import registration
from jenga_core.service.fleet.registration import Report
from jenga_core.service.ids import new_id

GIB = 2**30


def gpus(*names: str, gib: int = 80) -> list[Report]:
    """GPUs of that size."""
    return [Report(f"GPU-{name}", "cuda", "NVIDIA H100", gib * GIB) for name in names]


def join_fleet(database: Database, *reports: Report, host: str = "host", host_gib: int | None = None) -> str:
    """A worker that has just beaten, with these devices, on a host with so much memory; return its id."""
    worker_id = new_id("worker-")
    with database.writing() as session:
        memory_bytes = None if host_gib is None else host_gib * GIB
        registration.sign_on(
            session, worker_id, host=host, pid=os.getpid(), versions={"jenga": "test"}, memory_bytes=memory_bytes
        )
        registration.beat(session, worker_id, reports)
    return worker_id

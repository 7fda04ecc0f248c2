"""The fleet: everything for administrators, and of other teams only that they are there for the rest."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from jenga_core.service.accounts.keys import Scope, create_key
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Device, DeviceLease, Team, Worker
from jenga_core.service.jobs.state import JobState
from tests.api.conftest import Api
from tests.support.jobs import force, seed, submit_job


def populate(api: Api) -> tuple[str, str, str]:
    """A worker with a GPU that another team's job holds, and a queued job of ours and of theirs; their three ids."""
    others = seed(api.database, api.settings)
    running, waiting = (submit_job(api.database, others) for _ in range(2))
    mine = submit_job(api.database, api.seeded)
    force(api.database, running, JobState.RUNNING, token="t")
    with api.database.writing() as session:
        now = database_now()
        session.add(
            Worker(id="worker-1", host="gpu-1", pid=1, versions={"torch": "2"}, started_at=now, heartbeat_at=now)
        )
        session.flush()
        session.add(
            Device(
                uuid="GPU-1",
                worker_id="worker-1",
                kind="cuda",
                name="L4",
                memory_bytes=2**34,
                memory_used_bytes=2**30,
                foreign_processes=[],
            )
        )
        session.flush()
        session.add(DeviceLease(device_uuid="GPU-1", job_id=running, token="t", since=now))
    return running, waiting, mine


def fleet(api: Api, *scopes: Scope) -> dict[str, Any]:
    with api.database.writing() as session:
        team = session.get_one(Team, api.seeded.team_id)
        key = create_key(session, team, "fleet", pepper=api.settings.pepper, scopes=scopes)
    shown: dict[str, Any] = TestClient(api.app, headers={"Authorization": f"Bearer {key}"}).get("/v1/fleet").json()
    return shown


def test_an_administrator_sees_everything(api: Api) -> None:
    running, waiting, mine = populate(api)
    shown = fleet(api, Scope.ADMIN)
    (worker,) = shown["workers"]
    assert (worker["host"], worker["state"]) == ("gpu-1", "online")
    (device,) = worker["devices"]
    assert device["held_by"]["job_id"] == running
    assert {place["job_id"] for place in shown["queue"]} == {waiting, mine}
    assert all(place["reason"] for place in shown["queue"])
    assert all(team["team_id"] for team in shown["teams"])


def test_others_see_that_somebody_is_there(api: Api) -> None:
    running, waiting, mine = populate(api)
    shown = fleet(api, Scope.READ)
    (device,) = shown["workers"][0]["devices"]
    assert device["held_by"] == {"job_id": None, "team_id": None}
    assert (device["name"], device["memory_bytes"]) == ("L4", 2**34)
    assert sorted(place["position"] for place in shown["queue"]) == [1, 2]
    assert {place["job_id"] for place in shown["queue"]} == {None, mine}
    named = [team["name"] for team in shown["teams"] if team["team_id"] is not None]
    assert len(named) == 1
    assert {team["name"] for team in shown["teams"] if team["team_id"] is None} == {"another team"}
    assert running not in str(shown)
    assert waiting not in str(shown)

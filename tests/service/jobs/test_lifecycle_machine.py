"""Whatever is done to a job, in whatever order: the rows agree with a model of twenty lines.

The machine submits a few jobs and lets callers (who ask) and supervisors (who hold tokens, fresh and stale) at them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from jenga_core.service.db.models import DeviceLease, Job, JobCheckpoint, JobEvent
from jenga_core.service.db.session import Database
from jenga_core.service.ids import new_id
from jenga_core.service.jobs import lifecycle, queue
from jenga_core.service.jobs.lifecycle import LAST_STAGES, JobConflict, LeaseLost
from jenga_core.service.jobs.state import ALLOWED, JobStage, JobState
from jenga_core.service.settings import Settings
from tests.support.fleet import gpus, join_fleet
from tests.support.jobs import Seed, new_job, seed

S = JobState
MAX_ATTEMPTS = 3
MOST_JOBS = 2
"""That have not ended; few, so that much happens to each."""
STALE = st.integers(0, 4)
"""0: with a token that holds the job no more."""

DEVICES = ["GPU-0", "GPU-1", "GPU-2"]


@dataclass
class Model:
    """What a job should be."""

    state: JobState = S.QUEUED
    stage: JobStage = JobStage.VALIDATE
    step: int = 0
    attempt: int = 0
    token: str | None = None
    last_token: str = "never"
    stop_asked: bool = False
    saved: int = 0
    """Step of the newest checkpoint."""
    devices: set[str] = field(default_factory=set)

    def let_go(self, to: JobState, *, counted: bool = True) -> None:
        self.last_token = self.token or self.last_token
        self.state, self.token, self.devices = to, None, set()
        self.attempt -= not counted
        if not to.is_terminal:
            self.step = self.saved
        if to is S.QUEUED and self.saved == 0:
            self.stop_asked = False  # there is nothing to finish with


class Lifecycle(RuleBasedStateMachine):
    jobs: Bundle[str] = Bundle("jobs")

    def __init__(self, database: Database, seeded: Seed) -> None:
        super().__init__()
        self.database, self.seeded = database, seeded
        self.models: dict[str, Model] = {}

    def _token(self, job_id: str, stale: int) -> str:
        """The token that holds the job, as a rule; now and then one that did."""
        model = self.models[job_id]
        return model.token if model.token and stale else model.last_token

    def _try(self, write: Callable[[Session], object]) -> bool:
        try:
            with self.database.writing() as session:
                write(session)
        except (JobConflict, LeaseLost):
            return False
        return True

    @precondition(lambda self: sum(not model.state.is_terminal for model in self.models.values()) < MOST_JOBS)
    @rule(target=jobs)
    def submit(self) -> str:
        with self.database.writing() as session:
            job_id = lifecycle.submit(session, new_job(self.seeded)).id
        self.models[job_id] = Model()
        return job_id

    @rule(job_id=jobs, wanted=st.sets(st.sampled_from(DEVICES), max_size=2))
    def claim(self, job_id: str, wanted: set[str]) -> None:
        model = self.models[job_id]
        free = set(DEVICES) - {uuid for each in self.models.values() for uuid in each.devices}
        devices = sorted(wanted & free)
        with self.database.writing() as session:
            job = lifecycle.claim(session, job_id, lease_seconds=600, devices=devices)
        assert (job is not None) == (model.state is S.QUEUED)
        if job is None:
            return
        assert job.lease_token is not None
        model.state, model.stage, model.token, model.devices = (
            S.RUNNING,
            JobStage.VALIDATE,
            job.lease_token,
            set(devices),
        )
        model.attempt += 1

    @rule(job_id=jobs, stale=STALE, stage=st.sampled_from(list(JobStage)), step=st.integers(0, 5))
    def record(self, job_id: str, stale: int, stage: JobStage, step: int) -> None:
        model, token = self.models[job_id], self._token(job_id, stale)
        done = self._try(lambda session: lifecycle.record(session, job_id, token, stage=stage, step=step))
        assert done == (model.token == token)
        if done:
            model.stage, model.step = stage, step

    @rule(job_id=jobs)
    def save(self, job_id: str) -> None:
        model = self.models[job_id]
        if model.state.is_held and model.step > model.saved:
            with self.database.writing() as session:
                session.add(
                    JobCheckpoint(
                        id=new_id("ftckpt-"), job_id=job_id, step=model.step, folder="x", created_at=0.0, metrics={}
                    )
                )
            model.saved = model.step

    @rule(job_id=jobs, stale=STALE)
    def renew(self, job_id: str, stale: int) -> None:
        model, token = self.models[job_id], self._token(job_id, stale)
        told: list[lifecycle.Wishes] = []
        done = self._try(lambda session: told.append(lifecycle.renew(session, job_id, token, lease_seconds=600)))
        assert done == (model.token == token)
        if done:
            assert told == [lifecycle.Wishes(model.state, finish=model.stop_asked)]

    @rule(job_id=jobs, stale=STALE, to=st.sampled_from([S.SUCCEEDED, S.FAILED, S.CANCELLED]))
    def settle(self, job_id: str, stale: int, to: JobState) -> None:
        model, token = self.models[job_id], self._token(job_id, stale)
        done = self._try(lambda session: lifecycle.settle(session, job_id, token, to))
        assert done == (model.token == token and to in ALLOWED[model.state])
        if done:
            model.let_go(to)

    @rule(job_id=jobs, stale=STALE, counted=st.booleans())
    def requeue(self, job_id: str, stale: int, counted: bool) -> None:
        model, token = self.models[job_id], self._token(job_id, stale)
        done = self._try(lambda session: lifecycle.requeue(session, job_id, token, counted=counted))
        assert done == (model.token == token and model.state is S.RUNNING)
        if done:
            model.let_go(S.QUEUED, counted=counted)

    @rule(job_id=jobs, stale=STALE)
    def pause(self, job_id: str, stale: int) -> None:
        model, token = self.models[job_id], self._token(job_id, stale)
        done = self._try(lambda session: lifecycle.pause(session, job_id, token))
        assert done == (model.token == token and model.state is S.PAUSING)
        if done:
            model.let_go(S.PAUSED, counted=False)

    @rule(job_id=jobs)
    def request_pause(self, job_id: str) -> None:
        model = self.models[job_id]
        training = model.state is S.RUNNING and model.stage not in LAST_STAGES and not model.stop_asked
        done = self._try(lambda session: lifecycle.request_pause(session, job_id))
        assert done == (training or model.state in (S.QUEUED, S.PAUSING, S.PAUSED))
        if training:
            model.state = S.PAUSING
        elif model.state is S.QUEUED:
            model.state = S.PAUSED

    @rule(job_id=jobs)
    def train(self, job_id: str) -> None:
        """Two steps at once, without which chance alone seldom gets far."""
        self.claim(job_id=job_id, wanted={"GPU-0"})
        self.record(job_id=job_id, stale=1, stage=JobStage.FINETUNE, step=1)

    @rule(job_id=jobs)
    def pause_at_once(self, job_id: str) -> None:
        self.save(job_id=job_id)
        self.request_pause(job_id=job_id)
        self.pause(job_id=job_id, stale=1)

    @rule(job_id=jobs)
    def stop_and_pause(self, job_id: str) -> None:
        self.request_stop(job_id=job_id)
        self.request_pause(job_id=job_id)

    @rule(job_id=jobs)
    def resume(self, job_id: str) -> None:
        model = self.models[job_id]
        done = self._try(lambda session: lifecycle.resume(session, job_id))
        assert done == (model.state in (S.PAUSED, S.QUEUED, S.RUNNING))
        if model.state is S.PAUSED:
            model.state = S.QUEUED

    @rule(job_id=jobs)
    def request_stop(self, job_id: str) -> None:
        model = self.models[job_id]
        asked = model.stop_asked and model.state in (S.QUEUED, S.RUNNING, S.SUCCEEDED)
        waits = model.state in (S.QUEUED, S.PAUSED) and model.step > 0
        trains = (
            model.state is S.RUNNING
            and model.stage not in LAST_STAGES
            and (model.step > 0 or model.stage is JobStage.FINETUNE)
        )
        done = self._try(lambda session: lifecycle.request_stop(session, job_id))
        new = (waits or trains) and (not model.stop_asked or model.state is S.PAUSED)
        assert done == (asked or new)
        if new:
            model.stop_asked = True
            model.state = S.RUNNING if trains else S.QUEUED

    @rule(job_id=jobs)
    def request_cancel(self, job_id: str) -> None:
        model = self.models[job_id]
        done = self._try(lambda session: lifecycle.request_cancel(session, job_id))
        assert done == (model.state not in (S.SUCCEEDED, S.FAILED))
        if model.state in (S.QUEUED, S.PAUSED):
            model.state = S.CANCELLED
        elif model.state in (S.RUNNING, S.PAUSING):
            model.state = S.CANCELLING

    @rule(job_id=jobs)
    def lease_runs_out(self, job_id: str) -> None:
        model = self.models[job_id]
        with self.database.writing() as session:
            session.get_one(Job, job_id).lease_expires_at = 0.0 if model.token else None
            session.flush()
            lost = lifecycle.expired(session)
            assert [job.id for job in lost] == ([job_id] if model.token else [])
            for job in lost:
                lifecycle.take_back(session, job, max_attempts=MAX_ATTEMPTS)
        if model.token is None:
            return
        model.let_go(
            {S.CANCELLING: S.CANCELLED, S.PAUSING: S.PAUSED}.get(
                model.state, S.QUEUED if model.attempt < MAX_ATTEMPTS else S.FAILED
            )
        )

    @invariant()
    def rows_agree(self) -> None:
        with self.database.reading() as session:
            held: dict[str, set[str]] = {job_id: set() for job_id in self.models}
            for lease in session.scalars(select(DeviceLease)):
                held[lease.job_id].add(lease.device_uuid)
                assert lease.token == self.models[lease.job_id].token
            for job_id, model in self.models.items():
                job = session.get_one(Job, job_id)
                assert (job.state, job.attempt, job.lease_token) == (model.state, model.attempt, model.token)
                assert job.step == model.step
                assert (job.lease_token is not None) == model.state.is_held == (job.lease_expires_at is not None)
                assert (job.finished_at is not None) == model.state.is_terminal
                assert (job.stop_asked_at is not None) == model.stop_asked
                assert held[job_id] == model.devices
                told = session.scalars(select(JobEvent.seq).where(JobEvent.job_id == job_id).order_by(JobEvent.seq))
                assert list(told) == list(range(1, job.event_seq + 1))


def test_the_lifecycle_agrees_with_a_model(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "ring", lambda job_id: True)
    seeded = seed(database, settings)
    join_fleet(database, *gpus("0", "1", "2"))

    def fresh() -> Lifecycle:
        with database.writing() as session:  # the machine is started anew many times, on one database
            for lease in session.scalars(select(DeviceLease)):
                session.delete(lease)
            for job in session.scalars(select(Job)):
                job.state, job.lease_token, job.lease_expires_at = S.CANCELLED, None, None
        return Lifecycle(database, seeded)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        fresh, settings=hypothesis_settings(max_examples=50, stateful_step_count=40, deadline=None)
    )

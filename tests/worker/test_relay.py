"""What the trainer says, as rows."""

from __future__ import annotations

import time

from jenga_core.service.db.models import Job, JobMetric
from jenga_core.service.db.session import Database
from jenga_core.service.fleet import placement
from jenga_core.service.jobs import lifecycle
from jenga_core.service.settings import Settings
from tests.support.fleet import gpus, join_fleet
from tests.support.jobs import seed, submit_job
from worker.protocol import StepMessage
from worker.relay import Relay


def test_a_step_keeps_its_time_when_its_held_out_loss_comes_later(settings: Settings, database: Database) -> None:
    submit_job(database, seed(database, settings))
    worker = join_fleet(database, *gpus("0"))
    with database.writing() as session:
        choice = placement.choose(session, worker)
        assert choice is not None
        job = lifecycle.claim(session, choice.job_id, lease_seconds=60, devices=choice.devices)
        assert isinstance(job, Job)
        relay = Relay(job)

    def written(*messages: StepMessage) -> JobMetric:
        time.sleep(0.01)
        with database.writing() as session:
            relay.write(session, messages)
            return session.get_one(JobMetric, (job.id, 3))

    first = written(StepMessage(step=3, train_loss=2.0, tokens_per_second=5.0))
    then = written(StepMessage(step=3, valid_loss=1.5))
    assert (then.train_loss, then.valid_loss, then.created_at) == (2.0, 1.5, first.created_at)
    again = written(StepMessage(step=3, train_loss=1.9))  # by a later attempt
    assert (again.train_loss, again.valid_loss) == (1.9, 1.5)
    assert again.created_at > first.created_at

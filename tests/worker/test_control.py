"""Pause, resume, stop-and-save, giving way, and what is done when memory ran out: from the wish to what is left."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select, update

from jenga_core.config import JengaConfig
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, JobEvent, JobMetric, Worker
from jenga_core.service.db.session import Database
from jenga_core.service.fleet import leases
from jenga_core.service.jobs import lifecycle
from jenga_core.service.jobs.lifecycle import JobConflict
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from tests.support.fleet import gpus, join_fleet
from tests.support.jobs import MODEL_CONFIG, Seed, force, new_job, seed, submit_job
from tests.support.processes import is_alive, until
from tests.support.running import Running
from tests.worker.conftest import FAKE_TRAINER
from worker.out_of_memory import smaller
from worker.protocol import ErrorMessage, TrainerSpec
from worker.stop import Stop
from worker.supervisor import Supervisor

Submit = Callable[[str], str]
Load = Callable[[str], Job]


def messages_of(database: Database, job_id: str) -> list[str]:
    with database.reading() as session:
        statement = select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)
        return list(session.scalars(statement))


def losses_of(database: Database, job_id: str) -> list[int]:
    with database.reading() as session:
        trained = (JobMetric.job_id == job_id) & JobMetric.train_loss.is_not(None)
        return list(session.scalars(select(JobMetric.step).where(trained).order_by(JobMetric.step)))


def ask(database: Database, request: Callable[..., object], job_id: str) -> object:
    with database.writing() as session:
        return request(session, job_id)


def test_a_paused_job_lets_go_of_its_device_and_goes_on_at_the_next_step(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database, settings: Settings
) -> None:
    job_id = submit("slow")
    running = Running(supervisor)
    until(lambda: job(job_id).step >= 1)
    assert ask(database, lifecycle.request_pause, job_id) is JobState.PAUSING
    assert running.join() == [job_id]
    paused = job(job_id)
    assert (paused.state, paused.attempt, paused.lease_token) == (JobState.PAUSED, 0, None)
    assert 1 <= paused.step < 3
    with database.reading() as session:
        assert leases.held_by(session, job_id) == []
    told = messages_of(database, job_id)
    assert told[-1] == f"The job is paused; it will go on after step {paused.step}"
    assert told.count("The trainer was asked to stop (SIGTERM)") == 1
    trainer, _ = (settings.folder("jobs", job_id) / "trainer.pid").read_text().split()
    assert not is_alive(int(trainer))

    assert supervisor.drain() == []  # nobody takes a paused job
    assert ask(database, lifecycle.resume, job_id) is JobState.QUEUED
    assert supervisor.drain() == [job_id]
    done = job(job_id)
    assert (done.state, done.report) == (JobState.SUCCEEDED, {"score": "exact", "first_step": paused.step})
    assert losses_of(database, job_id) == [1, 2, 3]


def test_a_pause_that_is_not_answered_is_enforced(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("hang_hard")
    running = Running(supervisor)
    until(lambda: "hanging" in messages_of(database, job_id))
    ask(database, lifecycle.request_pause, job_id)
    running.join()
    assert job(job_id).state == JobState.PAUSED
    told = messages_of(database, job_id)
    assert "The trainer did not stop within 1 s and was killed (SIGKILL)" in told
    assert told[-1] == "The job is paused; it has no checkpoint and will begin anew"


def test_a_pausing_job_that_is_cancelled_is_cancelled(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("hang_hard")
    running = Running(supervisor)
    until(lambda: "hanging" in messages_of(database, job_id))
    ask(database, lifecycle.request_pause, job_id)
    ask(database, lifecycle.request_cancel, job_id)
    running.join()
    assert job(job_id).state == JobState.CANCELLED


def test_a_job_that_is_stopped_finishes_with_what_is_trained(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("slow")
    running = Running(supervisor)
    until(lambda: job(job_id).step >= 1)
    assert ask(database, lifecycle.request_stop, job_id) is JobState.RUNNING
    assert running.join() == [job_id]
    done = job(job_id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert 1 <= done.step < 3
    assert done.fine_tuned_model is not None
    assert "The trainer was asked to finish with what is trained (SIGUSR1)" in messages_of(database, job_id)
    assert ask(database, lifecycle.request_stop, job_id) is JobState.SUCCEEDED  # asking again is harmless


def test_a_paused_job_that_is_stopped_is_told_to_train_no_further(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database, settings: Settings
) -> None:
    job_id = submit("slow")
    running = Running(supervisor)
    until(lambda: job(job_id).step >= 1)
    ask(database, lifecycle.request_pause, job_id)
    running.join()
    ask(database, lifecycle.request_stop, job_id)
    assert supervisor.run_next() == job_id
    spec = TrainerSpec.model_validate_json((settings.folder("jobs", job_id) / "spec.json").read_text())
    assert spec.finish
    assert job(job_id).state == JobState.SUCCEEDED
    assert losses_of(database, job_id)[-1] < 3


def test_a_filler_that_gives_way_is_queued_again_uncounted(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("hang")
    running = Running(supervisor)
    until(lambda: "hanging" in messages_of(database, job_id))
    supervisor.stop.set()  # so that it is not taken up again at once
    with database.writing() as session:
        session.get_one(Job, job_id).give_way_at = database_now()
    running.join()
    assert (job(job_id).state, job(job_id).attempt) == (JobState.QUEUED, 0)
    assert (
        messages_of(database, job_id)[-1] == "The first job in line needs the devices; the job goes back to the queue"
    )


def test_the_trainer_sees_its_devices_and_no_others(
    settings: Settings, database: Database, stop: Stop, job: Load, submit: Submit
) -> None:
    worker_id = join_fleet(database, *gpus("a", "b", "c"))
    code = "import os,sys; print(os.environ['CUDA_VISIBLE_DEVICES']); sys.exit(7)"
    supervisor = Supervisor(settings, database, stop, worker_id, command=(sys.executable, "-c", code), tick_seconds=0.1)
    job_id = submit("unused")
    with database.writing() as session:
        session.get_one(Job, job_id).gpus = 2
    assert supervisor.run_next() == job_id
    error = job(job_id).error
    assert error is not None
    assert error["message"].endswith("exited with code 7: GPU-a,GPU-b")


@pytest.fixture
def seeded(database: Database, settings: Settings) -> Seed:
    """A model that needs some memory, and a trainer that always runs out of it."""
    made = seed(database, settings, rows=b'{"text": "out_of_memory"}\n')
    large = {**MODEL_CONFIG, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
    (settings.folder("models", made.model) / "config.json").write_text(json.dumps({**large, "vocab_size": 128256}))
    return made


def run_out_of_memory(
    settings: Settings, database: Database, stop: Stop, seeded: Seed, **columns: Any
) -> tuple[str, Supervisor]:
    worker_id = join_fleet(database, *gpus("a", gib=8))
    supervisor = Supervisor(settings, database, stop, worker_id, command=FAKE_TRAINER, tick_seconds=0.1)
    config = JengaConfig.preset("lora", context_length_tokens=4096).model_dump(mode="json")
    return submit_job(database, seeded, config=config, **columns), supervisor


def test_out_of_memory_fails_with_measured_and_predicted_and_what_would_fit(
    settings: Settings, database: Database, stop: Stop, job: Load, seeded: Seed
) -> None:
    job_id, supervisor = run_out_of_memory(settings, database, stop, seeded)
    assert supervisor.drain() == [job_id]
    failed = job(job_id)
    assert failed.state == JobState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "out_of_memory"
    said = failed.error["message"]
    assert said.startswith("out of memory: predicted ")
    assert re.search(r"measured 9\.0 GiB when it failed, the GPU has 8\.0 GiB; recompute='\w+' would need less", said)
    assert said.endswith("needs 9 GiB, has 8")


def test_oom_policy_shrink_tries_once_more_with_recompute(
    settings: Settings, database: Database, stop: Stop, job: Load, seeded: Seed
) -> None:
    job_id, supervisor = run_out_of_memory(settings, database, stop, seeded, oom_policy="shrink")
    assert supervisor.drain() == [job_id, job_id]
    failed = job(job_id)
    assert (failed.state, failed.shrunk) == (JobState.FAILED, True)
    assert (failed.config["recompute"], failed.config["offload"]) == ("full", True)
    assert failed.host_bytes > 0
    told = messages_of(database, job_id)
    assert sum("goes back to the queue, once, with recompute='full' and offload" in message for message in told) == 1


def test_what_could_not_be_computed_again_is_not_tried_again(
    settings: Settings, database: Database, seeded: Seed
) -> None:
    """recompute='full' with dropout is refused by the config."""
    job = new_job(seeded, oom_policy="shrink", config={"lora": {"dropout": 0.1}})
    with database.reading() as session:
        assert smaller(session, settings, job, OF_THE_GPU) is None


def test_nothing_is_moved_to_a_host_that_has_no_room(settings: Settings, database: Database, seeded: Seed) -> None:
    """It would wait forever."""
    config = JengaConfig.preset("lora", context_length_tokens=4096).model_dump(mode="json")
    job = new_job(seeded, gpus=1, oom_policy="shrink", config=config)
    full = new_job(seeded, gpus=1, oom_policy="shrink", config={**config, "recompute": "full"})
    join_fleet(database, *gpus("a"))
    for host_bytes, offload in ((2**40, True), (2**20, False)):
        with database.writing() as session:
            session.execute(update(Worker).values(memory_bytes=host_bytes))
        with database.reading() as session:
            found = smaller(session, settings, job, OF_THE_GPU)
            assert found is not None
            assert (found["config"]["recompute"], found["config"]["offload"]) == ("full", offload)
            assert (found["host_bytes"] > 0) == offload
            assert (smaller(session, settings, full, OF_THE_GPU) is not None) == offload


OF_THE_GPU = ErrorMessage(code="out_of_memory", message="", peak_bytes=1)
OF_THE_HOST = ErrorMessage(code="out_of_memory", message="")


@pytest.mark.parametrize(
    ("config", "told", "again"),
    [
        ({}, OF_THE_GPU, {"recompute": "full", "offload": True}),
        ({"recompute": "full"}, OF_THE_GPU, {"recompute": "full", "offload": True}),
        ({"recompute": "full", "offload": True}, OF_THE_GPU, None),
        ({}, OF_THE_HOST, {"recompute": "full", "offload": False}),
        ({"recompute": "full"}, OF_THE_HOST, None),
        ({"recompute": "full"}, None, None),
        ({"recompute": "full", "offload": True}, None, {"recompute": "full", "offload": False}),
        ({"recompute": "full", "offload": True}, OF_THE_HOST, {"recompute": "full", "offload": False}),
    ],
)
def test_what_is_tried_once_more_needs_less_of_what_ran_out(
    settings: Settings,
    database: Database,
    seeded: Seed,
    config: dict[str, Any],
    told: ErrorMessage | None,
    again: dict[str, Any] | None,
) -> None:
    """None: the kernel killed the trainer, for want of the host's memory."""
    with database.reading() as session:
        found = smaller(session, settings, new_job(seeded, gpus=1, oom_policy="shrink", config=config), told)
    assert (found and found["config"]) == again


def test_a_frozen_supervisor_s_trainer_dies_with_its_lease(
    settings: Settings, database: Database, stop: Stop, worker_id: str, submit: Submit
) -> None:
    """The supervisor is a process here, stopped by SIGSTOP; its late writes change nothing."""
    job_id = submit("hang_hard")
    short = settings.model_copy(update={"lease_seconds": 3.0})
    pid = os.fork()
    if pid == 0:
        forked = Database(settings.database)
        Supervisor(short, forked, stop, worker_id, command=FAKE_TRAINER, tick_seconds=0.1).run_next()
        os._exit(0)
    try:
        until(lambda: "hanging" in messages_of(database, job_id))
        trainer, _ = (settings.folder("jobs", job_id) / "trainer.pid").read_text().split()
        os.kill(pid, signal.SIGSTOP)
        until(lambda: not is_alive(int(trainer)), 20)
        until(lambda: bool(_expired(database)), 20)
        with database.writing() as session:
            (lost,) = lifecycle.expired(session)
            assert lifecycle.take_back(session, lost, max_attempts=3) is JobState.QUEUED
        before = messages_of(database, job_id)
        os.kill(pid, signal.SIGCONT)
        assert os.waitpid(pid, 0)[1] == 0
        assert messages_of(database, job_id) == before
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _expired(database: Database) -> list[Job]:
    with database.reading() as session:
        return lifecycle.expired(session)


def test_what_cannot_be_paused_says_so(submit: Submit, database: Database) -> None:
    job_id = submit("succeed")
    force(database, job_id, JobState.RUNNING, token="held", stage="publish")
    with pytest.raises(JobConflict, match="is in stage publish"):
        ask(database, lifecycle.request_pause, job_id)

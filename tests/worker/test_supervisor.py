"""Whatever a trainer does, the job ends as it should, the trainer is gone, and the worker lives for the next job."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from jenga_core.service.db.models import (
    FineTunedModel,
    Job,
    JobCheckpoint,
    JobEvent,
    JobMemory,
    JobMetric,
    JobSelection,
    PredictorEntry,
    StoredFile,
    Team,
)
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.jobs import lifecycle
from jenga_core.service.jobs.state import JobStage, JobState
from jenga_core.service.settings import Settings
from tests.support.jobs import force
from tests.support.processes import is_alive, until
from tests.support.running import Running
from worker import host_memory
from worker.protocol import TrainerSpec
from worker.stop import Stop
from worker.supervisor import Supervisor

Submit = Callable[[str], str]
Load = Callable[[str], Job]


def events_of(database: Database, job_id: str) -> list[JobEvent]:
    with database.reading() as session:
        statement = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)
        return list(session.scalars(statement))


def messages_of(database: Database, job_id: str) -> list[str]:
    return [event.message for event in events_of(database, job_id)]


def test_nothing_queued_is_nothing_done(supervisor: Supervisor) -> None:
    assert supervisor.run_next() is None


def test_a_job_that_succeeds_leaves_everything(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database, settings: Settings
) -> None:
    job_id = submit("succeed")
    assert supervisor.run_next() == job_id
    done = job(job_id)
    assert (done.state, done.stage, done.attempt) == (JobState.SUCCEEDED, JobStage.FINETUNE, 1)
    assert (done.step, done.total_steps, done.trained_tokens) == (3, 3, 192)
    assert done.report == {"score": "exact", "first_step": 0}
    assert done.hyperparameters["n_epochs"] == 1
    assert (done.lease_token, done.error) == (None, None)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert done.created_at <= done.started_at <= done.finished_at
    with database.reading() as session:
        team = session.get_one(Team, done.team_id)
        files = [session.get_one(StoredFile, file_id) for file_id in done.result_files]
        model = session.scalars(select(FineTunedModel)).one()
        metrics = session.scalars(select(JobMetric).order_by(JobMetric.step)).all()
        assert [(row.step, row.train_loss, row.valid_loss) for row in metrics] == [
            (0, None, 3.5),
            (1, 3.01, None),
            (2, 1.51, None),
            (3, 1.01, None),
        ]
        memory = session.scalars(select(JobMemory).order_by(JobMemory.phase)).all()
        assert [(row.phase, row.peak_bytes) for row in memory] == [("dense_reference", 2**33), ("finetune", 2**33)]
        selections = session.scalars(select(JobSelection).order_by(JobSelection.step)).all()
        assert [row.kept_fraction for row in selections] == [{"layers": [1.0, 0.5]}] * 3
        assert [row.kept_blocks for row in selections] == [{"entry_layer": 1, "spans": []}] * 3
        checkpoints = session.scalars(select(JobCheckpoint).order_by(JobCheckpoint.step)).all()
        assert [row.folder for row in checkpoints] == ["checkpoints/step-1", "checkpoints/step-2", "checkpoints/step-3"]
        predictors = session.scalars(select(PredictorEntry)).one()
        assert (predictors.team_id, predictors.base_model, predictors.job_id) == (team.id, done.model, job_id)
        assert predictors.folder == f"predictors/{team.id}/{'0' * 64}/0123456789abcdef"
        assert settings.folder(predictors.folder).is_dir()
        assert (predictors.settings, predictors.report) == ({"layers": [1]}, {"parameters": 5})
    assert done.fine_tuned_model == model.id
    assert model.id.startswith(f"ft:{done.model}:{team.name}::{job_id.removeprefix('ftjob-')[:8]}")
    assert [(file.filename, file.purpose, file.status) for file in files] == [
        ("metrics.csv", "fine-tune-results", "processed"),
        ("adapter.tar.gz", "fine-tune-results", "processed"),
    ]
    table, archive = (FileStore(settings).path(file.id).read_bytes() for file in files)
    assert [file.bytes for file in files] == [len(table), len(archive)]
    assert next(csv.reader(io.StringIO(table.decode()))) == ["step", "train_loss"]
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert "adapter/adapter_config.json" in opened.getnames()


def test_events_are_told_in_the_words_that_scripts_look_for(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("succeed")
    supervisor.run_next()
    told = events_of(database, job_id)
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert [event.message for event in told] == [
        f"Created fine-tuning job: {job_id}",
        "Fine-tuning job started",
        "Stage finetune began",
        "Step 0/3: validation loss=3.5",
        "Step 1/3: training loss=3.01",
        "Checkpoint created at step 1",
        "Step 2/3: training loss=1.51",
        "Checkpoint created at step 2",
        "Step 3/3: training loss=1.01",
        "Checkpoint created at step 3",
        f"New fine-tuned model created: {job(job_id).fine_tuned_model}",
        "The job has successfully completed",
    ]
    metrics = [event for event in told if event.type == "metrics"]
    assert len(metrics) == 4
    assert metrics[1].data is not None
    assert (metrics[1].data["step"], metrics[1].data["total_steps"], metrics[1].data["train_loss"]) == (1, 3, 3.01)


@pytest.mark.parametrize(
    ("behaviour", "code", "param", "words"),
    [
        ("user_error", "invalid_training_file", "training_file", "Row 2: no good"),
        ("out_of_memory", "out_of_memory", None, "needs 9 GiB, has 8"),
        ("raise", "trainer_error", None, "ValueError: the loss is not a number"),
        ("no_result", "trainer_error", None, "without a result"),
        ("no_files", "trainer_error", None, "no metrics.csv and no adapter.tar.gz"),
        ("hang_up", "trainer_error", None, "exited with code 3: it printed nothing"),
    ],
)
def test_a_failure_is_told_once_and_not_retried(
    supervisor: Supervisor,
    submit: Submit,
    job: Load,
    database: Database,
    behaviour: str,
    code: str,
    param: str | None,
    words: str,
) -> None:
    failing, next_one = submit(behaviour), submit("succeed")
    assert supervisor.drain() == [failing, next_one]
    failed = job(failing)
    assert failed.state == JobState.FAILED
    assert failed.error is not None
    assert (failed.error["code"], failed.error["param"]) == (code, param)
    assert words in failed.error["message"]
    last = events_of(database, failing)[-1]
    assert last.level == "error"
    assert words in last.message
    assert job(next_one).state == JobState.SUCCEEDED


def test_a_killed_trainer_is_started_again_until_attempts_run_out(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("die")
    assert supervisor.drain() == [job_id] * 3
    failed = job(job_id)
    assert (failed.state, failed.attempt) == (JobState.FAILED, 3)
    assert failed.error is not None
    assert failed.error["code"] == "trainer_killed"
    told = messages_of(database, job_id)
    assert "The trainer was killed by SIGKILL in attempt 1 of 3; the job goes back to the queue" in told
    assert "Fine-tuning job started again (attempt 3 of 3)" in told


def test_a_second_attempt_goes_on_from_the_newest_checkpoint(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database, settings: Settings
) -> None:
    job_id = submit("train_and_die, succeed")
    assert supervisor.run_next() == job_id
    assert (job(job_id).state, job(job_id).step) == (JobState.QUEUED, 2)
    assert supervisor.run_next() == job_id
    assert job(job_id).state == JobState.SUCCEEDED
    assert job(job_id).report == {"score": "exact", "first_step": 2}
    spec = TrainerSpec.model_validate_json((settings.folder("jobs", job_id) / "spec.json").read_text())
    saved = settings.folder("jobs", job_id) / "checkpoints"
    assert spec.checkpoints == [saved / "step-2", saved / "step-1"]


def test_steps_that_are_repeated_are_written_over(
    supervisor: Supervisor, submit: Submit, database: Database, settings: Settings
) -> None:
    job_id = submit("train_and_die, succeed")
    supervisor.run_next()
    for folder in settings.folder("jobs", job_id, "checkpoints").iterdir():
        folder.rmdir()  # nothing to go on from: the second attempt repeats steps 1 and 2
    supervisor.run_next()
    with database.reading() as session:
        metrics = session.scalars(select(JobMetric).order_by(JobMetric.step)).all()
        checkpoints = session.scalar(select(func.count()).select_from(JobCheckpoint))
    assert [row.train_loss for row in metrics] == [None, 3.02, 1.52, 1.02]  # the fake loss tells the attempt
    assert checkpoints == 3
    seqs = [event.seq for event in events_of(database, job_id)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_host_out_of_memory_is_not_retried(
    supervisor: Supervisor, submit: Submit, job: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([4, 5])
    monkeypatch.setattr(host_memory, "oom_kills", lambda: next(counts))
    job_id = submit("die")
    assert supervisor.drain() == [job_id]
    error = job(job_id).error
    assert error is not None
    assert error["code"] == "out_of_memory"


def test_lines_that_are_no_message_are_warnings(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("garbage")
    supervisor.run_next()
    assert job(job_id).state == JobState.SUCCEEDED
    warnings = [event.message for event in events_of(database, job_id) if event.level == "warn"]
    assert len(warnings) == 3
    assert all("no message" in message for message in warnings)
    told = {event.message: event for event in events_of(database, job_id)}
    assert told["Step 1: training loss=nan"].data is not None
    assert told["Step 1: training loss=nan"].data["train_loss"] is None
    assert told["a nul: ?"].data == {"nan": None}


def test_an_unfinished_last_line_is_a_warning(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database
) -> None:
    job_id = submit("unfinished_line")
    supervisor.run_next()
    assert job(job_id).state == JobState.SUCCEEDED
    assert sum("cut o" in message for message in messages_of(database, job_id)) == 1


def test_helpers_of_a_trainer_end_with_it(
    supervisor: Supervisor, submit: Submit, job: Load, settings: Settings
) -> None:
    job_id = submit("leave_helper")
    supervisor.run_next()
    assert job(job_id).state == JobState.SUCCEEDED
    helper = int((settings.folder("jobs", job_id) / "helper.pid").read_text())
    until(lambda: not is_alive(helper))


def test_a_model_that_is_gone_fails_the_job(
    supervisor: Supervisor, submit: Submit, job: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jenga_core.errors import NotFoundError
    from jenga_core.service.models import registry

    def gone(*_: object) -> None:
        raise NotFoundError("The model 'x' does not exist.", code="model_not_found", param="model")

    monkeypatch.setattr(registry, "get", gone)
    job_id = submit("succeed")
    assert supervisor.drain() == [job_id]
    assert job(job_id).error == {
        "code": "model_not_found",
        "message": "The model 'x' does not exist.",
        "param": "model",
    }


def test_a_folder_that_cannot_be_written_fails_the_job(
    supervisor: Supervisor, submit: Submit, job: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    job_id = submit("succeed")
    monkeypatch.setattr(Path, "write_text", full)
    assert supervisor.drain() == [job_id]
    error = job(job_id).error
    assert error is not None
    assert (error["code"], "No space left on device" in error["message"]) == ("job_folder", True)


@pytest.mark.parametrize("behaviour", ["hang", "hang_hard"])
def test_cancelling_stops_the_trainer(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database, behaviour: str
) -> None:
    job_id = submit(behaviour)
    running = Running(supervisor)
    until(lambda: "hanging" in messages_of(database, job_id))
    with database.writing() as session:
        assert lifecycle.request_cancel(session, job_id) is JobState.CANCELLING
    assert running.join() == [job_id]
    assert job(job_id).state == JobState.CANCELLED
    told = messages_of(database, job_id)
    assert "The trainer was asked to stop (SIGTERM)" in told
    assert ("The trainer did not stop within 1 s and was killed (SIGKILL)" in told) == (behaviour == "hang_hard")
    assert told[-1] == "The job was cancelled"


def test_a_worker_that_shuts_down_gives_its_job_back_uncounted(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database, stop: Stop
) -> None:
    job_id = submit("hang")
    running = Running(supervisor)
    until(lambda: "hanging" in messages_of(database, job_id))
    stop.set()
    assert running.join() == [job_id]  # and it did not claim the job again
    back = job(job_id)
    assert (back.state, back.attempt, back.lease_token) == (JobState.QUEUED, 0, None)


def test_a_supervisor_that_lost_its_lease_kills_its_trainer_and_writes_nothing(
    supervisor: Supervisor, submit: Submit, job: Load, database: Database, settings: Settings
) -> None:
    job_id = submit("hang_hard")
    running = Running(supervisor)
    until(lambda: "hanging" in messages_of(database, job_id))
    force(database, job_id, JobState.RUNNING, token="somebody else")
    before = len(events_of(database, job_id))
    assert running.join() == [job_id]
    assert job(job_id).lease_token == "somebody else"
    assert len(events_of(database, job_id)) == before
    trainer, _ = (settings.folder("jobs", job_id) / "trainer.pid").read_text().split()
    assert not is_alive(int(trainer))

"""The whole service in processes that may die: database, broker, API, two hosts of workers, ops.

`Stack.mend` starts again what has died, as `jenga up`, systemd or compose would; `verify` says whether every job ended
exactly once and left nothing behind.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from jenga_core.service.accounts.first_key import ensure_first_key
from jenga_core.service.db.models import DeviceLease, FineTunedModel, Job, JobEvent, JobMetric
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import queue
from jenga_core.service.jobs.state import JobState
from jenga_core.service.settings import Settings
from migrations.upgrade import upgrade
from tests.chaos.servers import Broker, Postgres, Process, free_port
from tests.support.broker import doorbell
from tests.support.jobs import Seed, seed, submit_job
from tests.support.processes import until
from tests.worker.fake_trainer_steps import STEADY_STEPS

ROOT = Path(__file__).parents[2]
BACKENDS = ("sqlite", "postgresql")
LEASE_SECONDS = 4.0
GPUS = {"h1": "1a,1b", "h2": "2a,2b"}
"""Hosts, and the fake GPUs of each."""

STEADY_CURVE = {step: 3 / step for step in range(1, STEADY_STEPS + 1)}
"""Of the fake trainer's `steady` run."""


class Stack:
    """Everything that runs."""

    def __init__(
        self,
        backend: str,
        folder: Path,
        socket_folder: Path,
        *,
        real: bool = False,
        hosts: Mapping[str, str] = GPUS,
    ) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self.postgres = Postgres(self.logs, socket_folder) if backend == "postgresql" else None
        self.broker = Broker("redis" if backend == "postgresql" else "valkey", self.logs, socket_folder)
        self.settings = Settings(
            data_dir=folder / "data",
            database_url=self.postgres.url if self.postgres else None,
            broker_url=self.broker.url,
            lease_seconds=LEASE_SECONDS,
            max_attempts=1000,
        )
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            "PYTHONUNBUFFERED": "1",
            "JENGA_DATA_DIR": str(self.settings.data_dir),
            "JENGA_DATABASE_URL": self.settings.database,
            "JENGA_BROKER_URL": self.broker.url,
            "JENGA_LEASE_SECONDS": str(LEASE_SECONDS),
            "JENGA_MAX_ATTEMPTS": "1000",
            "JENGA_CHAOS_REAL": "1" if real else "0",
        }
        celery = [sys.executable, "-m", "celery", "-A", "tests.chaos.celery_app", "worker", "--loglevel", "INFO"]
        self.workers = {
            host: self._process(
                f"worker-{host}",
                [*celery, "-Q", queue.RUN_QUEUE, "-c", "2", "-n", f"run@{host}"],
                {
                    **environment,
                    "JENGA_CHAOS_HOST": host,
                    "JENGA_CHAOS_GPUS": names,
                    "JENGA_CHAOS_CLOCK": str(self.clock_file(host)),
                },
            )
            for host, names in hosts.items()
        }
        self.ops = self._process(
            "ops",
            [*celery, "-B", "-Q", queue.OPS_QUEUE, "-c", "1", "-n", "ops@ops"],
            {**environment, "JENGA_CHAOS_HOST": "ops", "JENGA_CHAOS_GPUS": "none"},
        )
        self.port = free_port()
        uvicorn = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", str(self.port)]
        self.api = self._process("api", uvicorn, environment)
        self.database = Database(self.settings.database)
        self.seeded: Seed | None = None

    def _process(self, name: str, argv: list[str], environment: dict[str, str]) -> Process:
        return Process(name, argv, self.logs, cwd=ROOT, env=environment)

    def clock_file(self, host: str) -> Path:
        """Holds by how much that host's wall clock is wrong."""
        return self.folder / f"clock-{host}"

    @property
    def servers(self) -> list[Process]:
        """In the order in which they are started."""
        return [*([self.postgres] if self.postgres else []), self.broker]

    @property
    def programs(self) -> list[Process]:
        return [*self.workers.values(), self.ops, self.api]

    def start(self) -> None:
        """Servers, schema, first key, programs; returns when a worker is in the fleet and the API answers."""
        for server in self.servers:
            server.start()
        upgrade(self.settings)
        ensure_first_key(self.settings)
        self.seeded = seed(self.database, self.settings, rows=b'{"text": "steady"}\n')
        for program in self.programs:
            program.start()
        until(self.api_answers, 90)
        for node, name in {"ops@ops": "ops", **{f"run@{host}": f"worker-{host}" for host in self.workers}}.items():
            until(lambda node=node, name=name: f"{node} ready." in self.log_of(name), 90)

    def stop(self) -> None:
        for process in reversed([*self.servers, *self.programs]):
            process.stop()
        self.database.dispose()

    def mend(self) -> None:
        """Start again what has died."""
        for process in [*self.servers, *self.programs]:
            if not process.is_running():
                process.start()

    def log_of(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def api_answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=2, trust_env=False).is_success
        return False

    def submit(self, **columns: Any) -> str:
        """As the API does, with the bell."""
        assert self.seeded is not None
        with doorbell(self.settings):
            return submit_job(self.database, self.seeded, **columns)

    def curve(self, job_id: str) -> dict[int, float | None]:
        """Training loss by step."""
        trained = (JobMetric.job_id == job_id) & JobMetric.train_loss.is_not(None)
        points = select(JobMetric.step, JobMetric.train_loss).where(trained).order_by(JobMetric.step)
        with self.database.reading() as session:
            return {row.step: row.train_loss for row in session.execute(points)}

    def messages(self, job_id: str) -> list[str]:
        """Of its events."""
        with self.database.reading() as session:
            told = select(JobEvent.message).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)
            return list(session.scalars(told))

    def job(self, job_id: str) -> Job:
        with self.database.reading() as session:
            return session.get_one(Job, job_id)

    def ended(self, job_ids: Collection[str]) -> bool:
        try:
            with self.database.reading() as session:
                states = session.scalars(select(Job.state).where(Job.id.in_(job_ids))).all()
        except OperationalError:
            return False  # the database may be the one that was killed
        return len(states) == len(job_ids) and all(JobState(state).is_terminal for state in states)

    def supervisors(self) -> list[int]:
        """Pool processes of the run workers."""
        found = []
        for worker in self.workers.values():
            with suppress(psutil.NoSuchProcess):
                found += [child.pid for child in psutil.Process(worker.pid).children()]
        return found

    def trainers(self) -> list[int]:
        """Processes that were started on one of our job folders."""
        mine = str(self.settings.data_dir / "jobs")
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(
                mine in word for word in process.info["cmdline"] or []
            ):
                found.append(process.info["pid"])
        return found

    def verify(self, job_ids: Collection[str], *, curve: Mapping[int, float] = STEADY_CURVE) -> None:
        """Every job succeeded once; its events have no gap and no double; its curve is that of a job left in peace."""
        assert len(set(job_ids)) == len(job_ids)
        for job_id in job_ids:
            job = self.job(job_id)
            assert (job.state, job.error) == (JobState.SUCCEEDED, None), (job_id, job.state, job.error)
            told = self.messages(job_id)
            assert told.count("The job has successfully completed") == 1
            assert told[-1] == "The job has successfully completed"
            assert sum(message.startswith("Created") for message in told) == 1
            for attempt in _attempts(told):
                metrics = [message for message in attempt if message.startswith("Step ")]
                assert len(metrics) == len(set(metrics)), (job_id, metrics)
            assert self.curve(job_id) == dict(curve)
        with self.database.reading() as session:
            for job_id in job_ids:
                seqs = session.scalars(select(JobEvent.seq).where(JobEvent.job_id == job_id).order_by(JobEvent.seq))
                assert list(seqs) == list(range(1, self.job(job_id).event_seq + 1))
                models = session.scalars(select(FineTunedModel).where(FineTunedModel.job_id == job_id)).all()
                assert len(models) == 1
            assert session.scalars(select(DeviceLease)).all() == []
        until(lambda: self.trainers() == [], 30)


def _attempts(told: list[str]) -> Iterator[list[str]]:
    attempt: list[str] = []
    for message in told:
        if message.startswith("Fine-tuning job started"):
            yield attempt
            attempt = []
        attempt.append(message)
    yield attempt


@contextmanager
def running(backend: str, folder: Path, **options: Any) -> Iterator[Stack]:
    """A stack until the block ends; what it printed is shown when the test fails."""
    with tempfile.TemporaryDirectory(prefix="jc-", dir="/tmp") as socket_folder:
        stack = Stack(backend, folder, Path(socket_folder), **options)
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()
            for log in sorted(stack.logs.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """It may have ended by itself meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)

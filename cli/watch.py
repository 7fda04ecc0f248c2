"""`jenga watch`: follow a job over HTTP until it ends. Ctrl-C stops watching, never the job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.completion import job_ids
from cli.connection import Service, Unreachable, connected
from cli.display import Display, Snapshot
from cli.output import Json, emit_line, say
from cli.settings import DataDir, settings_of

ENDED = ("succeeded", "failed", "cancelled")
EXIT_CODES = {"succeeded": 0, "failed": 3, "cancelled": 4}
EXIT_INTERRUPTED = 130
POLL_SECONDS = 1.0
EVENTS_PER_PAGE = 100
PATIENCE_SECONDS = 300.0
"""A service that is away for longer ends the watching; a restart takes seconds."""


def watch(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, ftjob-...", autocompletion=job_ids)],
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Follow a job until it ends. Exit code 0 if it succeeded, 3 if it failed, 4 if it was cancelled.

    Ctrl-C stops watching, not the job. With --json each line is an event, and the last one the job.
    """
    with connected(settings_of(data_dir)) as service:
        raise typer.Exit(follow(service, job_id, as_json=as_json))


def follow(service: Service, job_id: str, *, as_json: bool = False) -> int:
    """Show the job until it ends; return the exit code."""
    watched = _Watched(service, job_id)
    try:
        with Display(job_id, Console(), quiet=as_json) as display:
            while not watched.over:
                for event in _patiently(watched, display):
                    if as_json:
                        emit_line(event)
                    if event["type"] != "metrics" or not display.is_live:  # the live lines have the numbers
                        display.tell(event["created_at"], event["message"], event["level"])
                display.update(watched.snapshot)
                if not watched.over:
                    time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        again = f"`jenga watch {job_id}` looks again, `jenga cancel {job_id}` ends it"
        say(f"\nNo longer watching. The job goes on: {again}")
        return EXIT_INTERRUPTED
    job = watched.job
    if as_json:
        emit_line(job)
    elif job["status"] == "succeeded":
        print(job["fine_tuned_model"])
        say(f"`jenga download {job_id}` fetches the adapter and the metrics")
    elif job["status"] == "failed":
        say(f"{job_id} failed: {(job.get('error') or {}).get('message', 'no reason given')}")
    else:
        say(f"{job_id} was cancelled")
    return EXIT_CODES[job["status"]]


def follow_events(service: Service, job_id: str) -> Iterator[dict[str, Any]]:
    """Events of a job as they come, oldest first, until it has ended."""
    watched = _Watched(service, job_id)
    while True:
        yield from watched.look()
        if watched.over:
            return
        time.sleep(POLL_SECONDS)


def known_events(service: Service, job_id: str) -> list[dict[str, Any]]:
    """Events of a job so far, oldest first."""
    return _Watched(service, job_id).look()


class _Watched:
    """What is known of one job, brought up to date by `look`."""

    def __init__(self, service: Service, job_id: str) -> None:
        self._service = service
        self._path = f"/fine_tuning/jobs/{job_id}"
        self._seen: set[str] = set()
        self._step = -1
        self._attempt = 0
        self.job: dict[str, Any] = {}
        self.snapshot = Snapshot()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return bool(self.job) and self.job["status"] in ENDED

    def look(self) -> list[dict[str, Any]]:
        """Ask for everything; return the events not seen before, oldest first."""
        self.job = self._service.get(self._path)  # first: once it has ended, all that follows has been written
        extra, snapshot = self.job["jenga"], self.snapshot
        if extra["attempt"] != self._attempt:  # a new attempt writes its steps anew
            self._attempt, self._step = extra["attempt"], -1
            snapshot.losses.clear()
            snapshot.first_step_at = None
        snapshot.state, snapshot.stage = extra["state"], extra["stage"]
        snapshot.step, snapshot.total_steps = extra["step"], extra["total_steps"]
        memory, queue = extra.get("memory") or {}, extra.get("queue")
        snapshot.activation_bytes = memory.get("activation_bytes")
        snapshot.dense_activation_bytes = memory.get("dense_activation_bytes")
        snapshot.remark = f"no. {queue['position']} in the queue: {queue['reason']}" if queue else ""
        finish = self.job.get("estimated_finish")
        snapshot.seconds_left = max(0.0, finish - time.time()) if finish else None
        self._read_steps()
        return self._new_events()

    def _read_steps(self) -> None:
        """What follows the newest step that is known, and that one again: it may have gained a held-out loss."""
        for metric in self._service.get(f"{self._path}/metrics", after_step=max(self._step - 1, -1))["data"]:
            if metric["train_loss"] is not None and metric["step"] > self._step:
                self.snapshot.losses.append(metric["train_loss"])
                self.snapshot.first_step_at = self.snapshot.first_step_at or metric["created_at"]
            self._step = max(self._step, metric["step"])
            if metric["valid_loss"] is not None:
                self.snapshot.held_out = metric["valid_loss"]
            self.snapshot.tokens_per_second = metric["tokens_per_second"] or self.snapshot.tokens_per_second

    def _new_events(self) -> list[dict[str, Any]]:
        """The service lists the newest first, so pages are read until one holds an event that is known."""
        new: list[dict[str, Any]] = []
        after: dict[str, str] = {}
        while True:
            page = self._service.get(f"{self._path}/events", limit=EVENTS_PER_PAGE, **after)
            fresh = [event for event in page["data"] if event["id"] not in self._seen]
            new += fresh
            if len(fresh) < len(page["data"]) or not page["has_more"] or not fresh:
                break
            after = {"after": page["data"][-1]["id"]}
        self._seen.update(event["id"] for event in new)
        return new[::-1]


def _patiently(watched: _Watched, display: Display) -> list[dict[str, Any]]:
    """Look, and go on looking while the service is away for a while. Raises Unreachable after PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return watched.look()
        except Unreachable as error:
            if not watched.job or time.monotonic() > deadline:
                raise
            watched.snapshot.remark = f"the service is away, trying again ({error.message.split(': ')[0]})"
            display.update(watched.snapshot)
            time.sleep(POLL_SECONDS)

"""`jenga list`, `logs`, `pause`, `resume`, `stop` and `cancel`: jobs that are there."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from cli import amounts
from cli.completion import job_ids
from cli.connection import connected
from cli.display import event_line
from cli.options import Metadata, metadata_of
from cli.output import Json, emit, emit_line, show, table
from cli.settings import DataDir, settings_of
from cli.watch import ENDED, follow_events, known_events
from jenga_core.service.jobs.state import JobState

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, ftjob-...", autocompletion=job_ids)]
SEARCHED = 1000
"""Jobs that are looked at, newest first, when a state is asked for."""


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    metadata: Metadata = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """The newest jobs: the state with the stage of what runs, the newest loss and of what it is.

    With --metadata only jobs that were submitted with these entries.
    """
    wanted = {f"metadata[{key}]": value for key, value in metadata_of(metadata).items()}
    with connected(settings_of(data_dir)) as service:
        jobs = service.pages("/fine_tuning/jobs", most=limit if state is None else SEARCHED, **wanted)
    jobs = [job for job in jobs if state is None or job["jenga"]["state"] == state][:limit]
    if as_json:
        emit(jobs)
        return
    rows = table("job", "model, suffix", "state", "step>", "loss", "activations>?", "owner?", "created!?")
    for job in jobs:
        extra = job["jenga"]
        steps = f"{extra['step']}/{extra['total_steps'] or '?'}"
        created = amounts.day(job["created_at"])
        rows.add_row(
            job["id"], _named(job), _standing(extra), steps, _loss(extra), _memory(extra),
            escape(extra.get("owner") or "-"), created,
        )  # fmt: skip
    fitting = state is not None or metadata
    show(rows, none="No such job." if fitting else "No jobs yet. `jenga submit FILE --model MODEL` makes one.")


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """What happened to a job, oldest first. With --json one event a line."""
    with connected(settings_of(data_dir)) as service:
        events = follow_events(service, job_id) if follow else known_events(service, job_id)
        for event in events:
            if as_json:
                emit_line(event)
            else:
                day = amounts.date(event["created_at"])
                print(f"{day} {event_line(event['created_at'], event['message'], event['level'])}", flush=True)


def pause(job_id: JobId, as_json: Json = False, data_dir: DataDir = None) -> None:
    """Let a job give its devices back; it keeps its place in training, and `jenga resume` lets it go on."""
    _ask(job_id, "pause", as_json, data_dir)


def resume(job_id: JobId, as_json: Json = False, data_dir: DataDir = None) -> None:
    """Put a paused job back into the queue."""
    _ask(job_id, "resume", as_json, data_dir)


def stop(job_id: JobId, as_json: Json = False, data_dir: DataDir = None) -> None:
    """Finish a job now, with what it has learned: evaluate, publish the adapter, succeed."""
    _ask(job_id, "stop", as_json, data_dir, done="is stopping: it evaluates and publishes what it has learned")


def cancel(job_id: JobId, as_json: Json = False, data_dir: DataDir = None) -> None:
    """Cancel a job that has not ended. It leaves no adapter; `jenga stop` would."""
    _ask(job_id, "cancel", as_json, data_dir)


def _ask(job_id: str, action: str, as_json: bool, data_dir: Any, *, done: str | None = None) -> None:
    """Ask for it, and print what the job does now: `done`, else its state."""
    with connected(settings_of(data_dir)) as service:
        job = service.post(f"/fine_tuning/jobs/{job_id}/{action}")
    if as_json:
        emit(job)
    else:
        print(f"{job_id} {done or 'is ' + job['jenga']['state']}")


def _named(job: dict[str, Any]) -> str:
    return escape(", ".join(filter(None, (job["model"], job["user_provided_suffix"]))))


def _standing(extra: dict[str, Any]) -> str:
    """The state, and what there is to say about it: its stage, its place in the queue, how it ended."""
    state, stage, queue = extra["state"], extra["stage"].replace("_", " "), extra.get("queue")
    if queue:
        more = f"no. {queue['position']}"
    elif state == "failed":
        more = f"in {stage}"
    elif state == "cancelled" and extra["started_at"] is None:
        more = "never ran"
    elif state == "succeeded" and extra["stop_asked_at"] and extra["step"] < extra["total_steps"]:
        more = "stopped"
    else:
        more = "" if state in ENDED or extra["started_at"] is None else stage
    return f"{state}, {more}" if more else str(state)


def _loss(extra: dict[str, Any]) -> str:
    """That of the newest step; of a job that succeeded the held-out one, if it was measured."""
    losses = extra.get("loss") or {}
    train, held_out = losses.get("train"), losses.get("held_out")
    if held_out is not None and (extra["state"] == "succeeded" or train is None):
        return f"{amounts.loss(held_out)} held-out"
    return "-" if train is None else f"{amounts.loss(train)} train"


def _memory(extra: dict[str, Any]) -> str:
    memory = extra.get("memory") or {}
    words = amounts.compared(memory.get("activation_bytes"), memory.get("dense_activation_bytes"))
    return amounts.size(memory.get("activation_bytes")) + (f", {words}" if words else "")

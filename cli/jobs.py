"""`jenga submit`, `watch`, `list` and `cancel`: the job commands, over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.connection import Service, connected
from cli.settings import DataDir, settings_of
from cli.tables import show, table
from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError

TERMINAL = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 1.0
EVENTS_PER_PAGE = 100

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, ftjob-...")]


def submit(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Training file, JSONL.")],
    model: Annotated[str, typer.Option(help="A base model, as `jenga models list` names it.")],
    validation: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Held-out file, JSONL.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="KEY=VALUE", help="Of the `jenga` object, e.g. selection.block_tokens=64."
        ),
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Goes into the name of the fine-tuned model.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Upload the files, create a fine-tuning job, and print its id."""
    request: dict[str, Any] = {"model": model, "jenga": options(option or ()), "suffix": suffix}
    JengaConfig.parse(request["jenga"])  # a mistyped option is said before the files travel
    with connected(settings_of(data_dir)) as service:
        request["training_file"] = _upload(service, file)
        if validation is not None:
            request["validation_file"] = _upload(service, validation)
        print(service.post("/fine_tuning/jobs", json=request)["id"])


def watch(job_id: JobId, data_dir: DataDir = None) -> None:
    """Follow a job until it ends. Exit code 0 if it succeeded. Ctrl-C stops watching, not the job."""
    console = Console()
    with connected(settings_of(data_dir)) as service, progress(console) as bar:
        task, seen = bar.add_task(job_id, total=None), set[str]()
        while True:
            job = service.get(f"/fine_tuning/jobs/{job_id}")
            for event in _new_events(service, job_id, seen):
                at = datetime.fromtimestamp(event["created_at"]).strftime("%H:%M:%S")
                style = _STYLES.get(event["level"])
                console.print(f"{at}  {event['message']}", style=style, markup=False, soft_wrap=True)
            extra = job.get("jenga") or {}
            bar.update(
                task,
                completed=extra.get("step") or 0,
                total=extra.get("total_steps"),
                description=f"{extra.get('state', job['status'])} · {extra.get('stage', '')}",
            )
            if job["status"] in TERMINAL:
                break
            time.sleep(POLL_SECONDS)
    if job["status"] != "succeeded":
        raise typer.Exit(1)
    print(job["fine_tuned_model"])


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20, data_dir: DataDir = None
) -> None:
    """The newest jobs."""
    rows = table("job", "model", "state", "stage", "step", "created")
    with connected(settings_of(data_dir)) as service:
        for job in service.get("/fine_tuning/jobs", limit=limit)["data"]:
            extra = job.get("jenga") or {}
            steps = f"{extra.get('step') or 0}/{extra.get('total_steps') or '?'}"
            created = datetime.fromtimestamp(job["created_at"]).strftime("%Y-%m-%d %H:%M")
            state = extra.get("state", job["status"])
            rows.add_row(job["id"], job["model"], state, extra.get("stage", ""), steps, created)
    show(rows)


def cancel(job_id: JobId, data_dir: DataDir = None) -> None:
    """Cancel a job that has not ended."""
    with connected(settings_of(data_dir)) as service:
        job = service.post(f"/fine_tuning/jobs/{job_id}/cancel")
    print(f"{job_id} is {(job.get('jenga') or {}).get('state', job['status'])}")


def options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["max_steps=12", "selection.score=random"]` to a nested mapping. Values are JSON, or else plain strings."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        *parents, key = path.split(".")
        if not equals or not all([*parents, key]):
            raise ConfigError(
                f"--option {pair!r}: expected KEY=VALUE, e.g. keep_fraction=0.4 or selection.score=random"
            )
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--option {pair!r}: {parent!r} was given a value of its own before")
        try:
            node[key] = json.loads(text)
        except ValueError:
            node[key] = text
    return tree


def progress(console: Console) -> Progress:
    """The bar of a job."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _upload(service: Service, path: Path) -> str:
    with path.open("rb") as file:
        stored = service.post("/files", data={"purpose": "fine-tune"}, files={"file": (path.name, file)})
    if stored["status"] == "error":
        raise ConfigError(f"{path}: {stored['status_details']}")
    return str(stored["id"])


def _new_events(service: Service, job_id: str, seen: set[str]) -> list[dict[str, Any]]:
    """Events not seen before, oldest first. The service lists the newest first, so pages are read until a known one."""

    def newest_first() -> Iterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            page = service.get(f"/fine_tuning/jobs/{job_id}/events", limit=EVENTS_PER_PAGE, **after)
            yield from page["data"]
            if not page["has_more"] or not page["data"]:
                return
            after = {"after": page["data"][-1]["id"]}

    new = []
    for event in newest_first():
        if event["id"] in seen:
            break
        new.append(event)
    seen.update(event["id"] for event in new)
    return new[::-1]


_STYLES = {"warn": "yellow", "error": "red"}

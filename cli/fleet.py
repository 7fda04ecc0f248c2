"""`jenga fleet` and `jenga predictors`: what jobs run on, and what they share."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape

from cli import amounts
from cli.connection import connected
from cli.output import Json, emit, show, table
from cli.settings import DataDir, settings_of

MOST = 1000

predictors_app = typer.Typer(no_args_is_help=True, add_completion=False)


def fleet(as_json: Json = False, data_dir: DataDir = None) -> None:
    """Machines and their devices, who holds them, who waits and why, and each team's use."""
    with connected(settings_of(data_dir)) as service:
        view = service.get("/fleet")
    if as_json:
        emit(view)
        return
    devices = table("device", "host?", "state!", "memory>", "in use>", "held by!", "others' processes>?")
    for worker in view["workers"]:
        for device in worker["devices"]:
            devices.add_row(
                escape(device["name"]), worker["host"], worker["state"], amounts.size(device["memory_bytes"]),
                amounts.size(device["memory_used_bytes"]), _holder(device), str(len(device["foreign_processes"] or ())),
            )  # fmt: skip
    show(devices)
    if not view["workers"]:
        print("no worker is running; `jenga up` starts one")
    if view["queue"]:
        print()
        queue = table("job", "no.>", "team", "why it waits")
        names = {team["team_id"]: team["name"] for team in view["teams"]}
        for entry in view["queue"]:
            team = names.get(entry["team_id"]) or "another team"
            queue.add_row(entry["job_id"] or "-", str(entry["position"]), team, escape(entry["reason"] or "-"))
        show(queue)
    print()
    teams = table("team", "running>", "queued>", "device hours, old ones counting less>")
    for team in view["teams"]:
        hours = f"{team['gpu_seconds_decayed'] / 3600:.1f}"
        teams.add_row(team["name"] or "another team", str(team["running"]), str(team["queued"]), hours)
    show(teams)


@predictors_app.callback()
def predictors() -> None:
    """The team's predictors of block scores, which its jobs share."""


@predictors_app.command("list")
def list_predictors(as_json: Json = False, data_dir: DataDir = None) -> None:
    """All of the team, newest first."""
    with connected(settings_of(data_dir)) as service:
        found = service.pages("/predictors", most=MOST)
    if as_json:
        emit(found)
        return
    rows = table("predictor", "base model", "layers>", "lowest recall>", "parameters>?", "made by!?", "created!?")
    for predictor in found:
        report = predictor["report"]
        recalls = [layer["recall"] for layer in report.get("layers", {}).values()]
        rows.add_row(
            predictor["id"], predictor["base_model"], str(len(recalls)), f"{min(recalls):.1%}" if recalls else "-",
            _count(report.get("parameters")), predictor["job_id"], amounts.day(predictor["created_at"]),
        )  # fmt: skip
    show(rows, none="No predictors yet. A job on a GPU trains them; on a CPU one with -o selection.score=predicted.")


def _holder(device: dict[str, Any]) -> str:
    held = device["held_by"]
    return "-" if held is None else held["job_id"] or "another team"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"

"""`jenga keys` and `jenga teams`: who may do what. Making and revoking needs a key with the scope admin."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import amounts
from cli.connection import connected
from cli.output import Json, emit, say, show, table
from cli.settings import DataDir, settings_of

MOST = 1000

keys_app = typer.Typer(help="API keys: who may do what.", no_args_is_help=True, add_completion=False)
teams_app = typer.Typer(
    help="Teams, which own files and jobs, and their quotas.", no_args_is_help=True, add_completion=False
)

OfTeam = Annotated[str | None, typer.Option("--team", metavar="ID", help="Another team's, org-...; needs admin.")]


@keys_app.command("list")
def list_keys(team: OfTeam = None, as_json: Json = False, data_dir: DataDir = None) -> None:
    """The team's keys, newest first. Secrets are never shown again."""
    with connected(settings_of(data_dir)) as service:
        found = service.pages("/keys", most=MOST, **({"team_id": team} if team else {}))
    if as_json:
        emit(found)
        return
    rows = table("key", "name", "may", "created!?", "last used!?", "state!")
    for key in found:
        used = amounts.day(key["last_used_at"]) if key["last_used_at"] else "never"
        state = "revoked" if key["revoked_at"] else "valid"
        rows.add_row(key["id"], key["name"], ", ".join(key["scopes"]), amounts.day(key["created_at"]), used, state)
    show(rows)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="For people: whom or what it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin, repeatable. Default: read, write.")
    ] = None,
    team: OfTeam = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, for the only time."""
    body: dict[str, Any] = {"name": name, "scopes": scope or ["read", "write"]}
    with connected(settings_of(data_dir)) as service:
        key = service.post("/keys", json={**body, **({"team_id": team} if team else {})})
    if as_json:
        emit(key)
        return
    say("The key, shown this once:")
    print(key["secret"])


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, the part between jenga_ and the next _.")],
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Make a key open nothing from now on."""
    with connected(settings_of(data_dir)) as service:
        key = service.delete(f"/keys/{key_id}")
    if as_json:
        emit(key)
    else:
        print(f"{key['id']} ({key['name']}) is revoked")


@teams_app.command("list")
def list_teams(as_json: Json = False, data_dir: DataDir = None) -> None:
    """All teams, with what they use of what they may."""
    with connected(settings_of(data_dir)) as service:
        found = service.pages("/teams", most=MOST)
    if as_json:
        emit(found)
        return
    rows = table("team", "name", "queued>", "running>", "GPU hours>", "storage>")
    for team in found:
        quotas, used = team["quotas"], team["quotas"]["used"]
        rows.add_row(
            team["id"], team["name"], _of(used["queued_jobs"], quotas["queued_jobs"]),
            _of(used["running_jobs"], quotas["running_jobs"]), _of(round(used["gpu_hours"], 1), quotas["gpu_hours"]),
            _of(amounts.size(used["storage_bytes"]), quotas["storage_bytes"] and amounts.size(quotas["storage_bytes"])),
        )  # fmt: skip
    show(rows)


@teams_app.command("create")
def create_team(
    name: Annotated[str, typer.Argument(help="Its name.")],
    queued_jobs: Annotated[int | None, typer.Option(min=0, help="Jobs that may wait.")] = None,
    running_jobs: Annotated[int | None, typer.Option(min=0, help="Jobs that may run at once.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(min=0, help="GPU hours in 30 days.")] = None,
    storage_bytes: Annotated[int | None, typer.Option(min=0, help="Bytes of files.")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Make a team and print its id; `jenga keys create NAME --team ID` makes its first key. No option: no limit."""
    quotas = {
        "queued_jobs": queued_jobs,
        "running_jobs": running_jobs,
        "gpu_hours": gpu_hours,
        "storage_bytes": storage_bytes,
    }
    with connected(settings_of(data_dir)) as service:
        team = service.post("/teams", json={"name": name, "quotas": quotas})
    if as_json:
        emit(team)
    else:
        print(team["id"])


def _of(used: Any, limit: Any) -> str:
    return f"{used}" if limit is None else f"{used} of {limit}"

"""`jenga`: start the service, add base models, submit and follow jobs.

    jenga doctor                                  what this machine lacks
    jenga up                                      the whole service, in the foreground
    jenga models add smollm2-135m                 a base model that jobs may name
    jenga submit train.jsonl --model smollm2-135m --option keep_fraction=0.4
    jenga watch ftjob-...
    jenga download ftjob-... result               the adapter, in result/adapter
    jenga train config.toml                       one run on this machine, without the service

`up`, `migrate`, `models add`, `train`, `bench` and `doctor` act on this machine; everything else is plain HTTP, as any
client could speak it. Nothing here imports torch: what needs it is started as a subprocess. A command's module is
imported when the command is used, or listed: `jenga list` does not wait for what `jenga up` needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from cli.output import say
from jenga_core.errors import JengaError

EXIT_CODES = """Exit codes: 0 done; 1 refused or failed, and stderr says why; 2 wrong usage; 3 the watched job failed;
4 it was cancelled; 5 the service cannot be reached; 130 Ctrl-C."""

COMMANDS: Mapping[str, Mapping[str, str]] = {
    "This machine": {
        "up": "cli.up:up",
        "migrate": "cli.up:migrate",
        "doctor": "cli.doctor:doctor",
        "train": "cli.train:train",
        "bench": "cli.bench:bench",
    },
    "Jobs": {
        "submit": "cli.submit:submit",
        "estimate": "cli.estimate:estimate",
        "list": "cli.jobs:list_jobs",
        "watch": "cli.watch:watch",
        "logs": "cli.jobs:logs",
        "pause": "cli.jobs:pause",
        "resume": "cli.jobs:resume",
        "stop": "cli.jobs:stop",
        "cancel": "cli.jobs:cancel",
        "download": "cli.files:download",
    },
    "What jobs use": {
        "models": "cli.models:app",
        "files": "cli.files:app",
        "predictors": "cli.fleet:predictors_app",
        "fleet": "cli.fleet:fleet",
    },
    "Who may what": {"keys": "cli.accounts:keys_app", "teams": "cli.accounts:teams_app"},
}
"""Where each command is, by the panel of `jenga --help` that lists it: a function, or an app of several commands."""


class _Group(TyperGroup):
    """Finds commands in the table. Expected errors end as one readable line on stderr and an exit code; anything else
    keeps its traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for panel in COMMANDS.values() for name in panel]

    def get_command(self, ctx: Any, name: str) -> Any:
        for panel, commands in COMMANDS.items():
            if name in commands:
                return _load(name, commands[name], panel)
        return None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except JengaError as error:
            say("Error: " + error.message)
            raise typer.Exit(getattr(error, "exit_code", 1)) from error


def _load(name: str, place: str, panel: str) -> Any:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        apart = found
    else:
        apart = typer.Typer(add_completion=False)
        apart.command(context_settings=getattr(found, "context_settings", None))(found)
    command = typer.main.get_command(apart)
    command.name = name
    command.rich_help_panel = panel  # type: ignore[attr-defined]
    return command


app = typer.Typer(cls=_Group, no_args_is_help=True, epilog=EXIT_CODES, pretty_exceptions_enable=False)


@app.callback()
def jenga() -> None:
    """Long-context fine-tuning as a service, on contextual token sparsity."""


if __name__ == "__main__":
    app(prog_name="jenga")

"""`jenga models`: add base models to this machine's data folder, list and delete the models of the service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import amounts
from cli.connection import connected
from cli.files import delete_each
from cli.output import Json, emit, show, table
from cli.settings import DataDir, settings_of
from cli.up import prepare
from jenga_core.errors import ConfigError, JengaError
from jenga_core.service.db.models import BaseModelEntry
from jenga_core.service.db.session import Database
from jenga_core.service.models import registry

app = typer.Typer(
    help="Base models that jobs may name, and the models that jobs made.", no_args_is_help=True, add_completion=False
)


@app.command("add")
def add(
    source: Annotated[
        str, typer.Argument(metavar="NAME_OR_PATH", help="smollm2-135m, ORG/NAME of the hub, or a folder.")
    ],
    name: Annotated[str | None, typer.Option(help="Name for jobs to use. Default: the source's own name.")] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Fetch a base model, convert it once if need be, and register it. Works with the service up or down."""
    settings = settings_of(data_dir)
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder.resolve())
    elif source.startswith((".", "/", "~")):
        raise ConfigError(f"there is no folder {source}")
    name = name or (Path(source).name if folder.is_dir() else source)
    registry.check_name(name)
    prepare(settings)
    database = Database(settings.database)
    try:
        with database.reading() as session:
            known = session.get(BaseModelEntry, name)
            if known is not None:
                emit(_public(known)) if as_json else print(f"{name} is already there")
                return
        with registry.staging(settings) as staged:
            _fetch(source, staged)
            with database.writing() as session:
                entry = registry.add(session, settings, name, source, staged)
            if as_json:
                emit(_public(entry))
                return
            print(
                f"{entry.id} added: {entry.model_type}, {entry.parameters / 1e6:,.1f}M parameters, "
                f"context {entry.context_length_tokens} tokens"
            )
    finally:
        database.dispose()


@app.command("list")
def list_models(as_json: Json = False, data_dir: DataDir = None) -> None:
    """The models of the service: base models and fine-tuned ones."""
    with connected(settings_of(data_dir)) as service:
        models = service.get("/models")["data"]
    if as_json:
        emit(models)
        return
    rows = table("model", "owner", "created")
    for model in models:
        rows.add_row(model["id"], model["owned_by"], amounts.day(model["created"]))
    show(rows, none="No models yet. `jenga models add smollm2-135m` adds a base model.")


@app.command("delete")
def delete_models(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Fine-tuned models, ft:...")],
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Delete models that jobs made, in this order, until one is refused. Their files stay: see `jenga files delete`."""
    delete_each("/models", models, as_json, data_dir)


def _public(entry: BaseModelEntry) -> dict[str, Any]:
    names = ("id", "source", "model_type", "parameters", "num_hidden_layers", "context_length_tokens", "fingerprint")
    return {name: getattr(entry, name) for name in names}


def _fetch(source: str, folder: Path) -> None:
    """In a process of its own: it may import torch, and it may be killed without harm to this one."""
    done = subprocess.run(
        [sys.executable, "-m", "jenga_core.finetuning.base_models", source, str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise JengaError(f"{source} could not be added (exit code {done.returncode}):\n{last}")

"""`jenga submit`: upload the files, create the job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cli.completion import model_names
from cli.connection import Service, ServiceError, Unreachable, connected
from cli.options import Metadata, Options, checked, metadata_of
from cli.output import Json, emit, say
from cli.settings import DataDir, settings_of
from cli.watch import follow
from jenga_core.errors import ConfigError

BIG_BYTES = 32 * 2**20
"""Uploads from this size on show a bar."""

File = Annotated[str, typer.Argument(metavar="FILE", help="Training file, JSONL; or file-..., one that was uploaded.")]
Model = Annotated[str, typer.Option(help="A base model, as `jenga models list` names it.", autocompletion=model_names)]
Validation = Annotated[str | None, typer.Option(metavar="FILE", help="Held-out file, JSONL, or file-....")]
Epochs = Annotated[int | None, typer.Option(min=1, max=50, help="Passes over the training file. Default: 3.")]
BatchSize = Annotated[int | None, typer.Option(min=1, max=256, help="Sequences per step. Default: 1.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="Whole devices of one host. Default: 1.")]


def submit(
    file: File,
    model: Model,
    validation: Validation = None,
    option: Options = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    suffix: Annotated[str | None, typer.Option(help="Goes into the model's name: letters, digits, - _ .")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the order of rows repeatable.")] = None,
    priority: Annotated[int | None, typer.Option(min=-1, max=1, help="1 goes before 0, which goes before -1.")] = None,
    gpus: Gpus = None,
    metadata: Metadata = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job at once, as `jenga watch` does.")] = False,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Upload the files, create a fine-tuning job, and print its id. Of a job that is refused no upload stays."""
    request = request_of(model, option, epochs, batch_size, gpus=gpus, priority=priority)
    request |= {"suffix": suffix, "seed": seed, "metadata": metadata_of(metadata) or None}
    with connected(settings_of(data_dir)) as service:
        uploads: list[str] = []
        try:
            request["training_file"] = stored(service, file, uploads)
            if validation is not None:
                request["validation_file"] = stored(service, validation, uploads)
            job = service.post("/fine_tuning/jobs", json=request)
        except Unreachable:  # the job may be there: the answer alone is missing
            raise
        except (ConfigError, ServiceError):
            remove(service, uploads)
            raise
        if watch:
            raise typer.Exit(follow(service, job["id"], as_json=as_json))
    if as_json:
        emit(job)
    else:
        print(job["id"])


def request_of(
    model: str, option: list[str] | None, epochs: int | None, batch_size: int | None, **scheduling: int | None
) -> dict[str, Any]:
    """The body of a job without its files. Raises ConfigError for a setting that there is not."""
    given = {"n_epochs": epochs, "batch_size": batch_size}
    hyperparameters = {name: value for name, value in given.items() if value is not None}
    jenga = {**checked(option or ()), **{name: value for name, value in scheduling.items() if value is not None}}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return {"model": model, "jenga": jenga, **({"method": method} if hyperparameters else {})}


def stored(service: Service, file: str, uploads: list[str]) -> str:
    """The id of a file on the server: the one named, or that of an upload, which is noted in `uploads`.

    Raises ConfigError with the bad row.
    """
    path = Path(file)
    if file.startswith("file-") and not path.exists():
        return file
    if not path.is_file():
        raise ConfigError(f"there is no file {file}")
    size = path.stat().st_size
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=size < BIG_BYTES)
    with bar, bar.open(path, "rb", description=path.name) as content:
        answer = service.post("/files", data={"purpose": "fine-tune"}, files={"file": (path.name, content)})
    uploads.append(answer["id"])
    if answer["status"] == "error":
        raise ConfigError(f"{path}: {answer['status_details']}")
    if size >= BIG_BYTES:
        say(f"{path.name} is on the server as {answer['id']}")
    return str(answer["id"])


def remove(service: Service, uploads: list[str]) -> None:
    """Delete these files."""
    for file_id in uploads:
        service.delete(f"/files/{file_id}")

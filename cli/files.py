"""`jenga download` and `jenga files`: what a job left, and all files of the team."""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cli import amounts
from cli.connection import Service, connected
from cli.jobs import JobId
from cli.output import Json, emit, show, table
from cli.settings import DataDir, settings_of
from jenga_core.errors import ConfigError, JengaError

ARCHIVE, ADAPTER = "adapter.tar.gz", "adapter"
MOST = 1000

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def files() -> None:
    """Files of the team: uploads, and what jobs left."""


@app.command("list")
def list_files(as_json: Json = False, data_dir: DataDir = None) -> None:
    """Uploads and results, newest first."""
    with connected(settings_of(data_dir)) as service:
        found = service.pages("/files", most=MOST)
    if as_json:
        emit(found)
        return
    rows = table("file", "name", "purpose", "size>", "state!", "created!?")
    for file in found:
        created = amounts.day(file["created_at"])
        name, size = escape(file["filename"]), amounts.size(file["bytes"])
        rows.add_row(file["id"], name, file["purpose"], size, file["status"], created)
    show(rows, none="No files yet. `jenga submit FILE --model MODEL` uploads one.")


@app.command("delete")
def delete_files(
    file_ids: Annotated[list[str], typer.Argument(metavar="FILE...", help="Ids, file-...")],
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Delete files, in this order, until one is refused: it does not exist, or a job that has not ended needs it."""
    delete_each("/files", file_ids, as_json, data_dir)


def delete_each(path: str, ids: list[str], as_json: bool, data_dir: Path | None) -> None:
    """Delete these objects below `path`, and print what is gone."""
    answers = []
    with connected(settings_of(data_dir)) as service:
        for each in ids:
            answers.append(service.delete(f"{path}/{quote(each, safe=':/')}"))
            if not as_json:
                print(f"{each} is deleted")
    if as_json:
        emit(answers)


def download(
    job_id: JobId,
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Made if need be. Default: a folder named like the job.")
    ] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Fetch a job's result files, and unpack the adapter into DIR/adapter, which peft loads as it is.

    What is in DIR already is never overwritten. Prints what was made.
    """
    folder = folder or Path(job_id)
    with connected(settings_of(data_dir)) as service:
        job = service.get(f"/fine_tuning/jobs/{job_id}")
        if not job["result_files"]:
            raise ConfigError(
                f"{job_id} is {job['jenga']['state']} and has no result files; a job that succeeded has them, "
                f"`jenga watch {job_id}` tells how it goes"
            )
        results = [service.get(f"/files/{file_id}") for file_id in job["result_files"]]
        made = _fetch(service, results, folder)
    if as_json:
        emit({"job": job_id, "made": [str(path) for path in made]})
    else:
        print("\n".join(map(str, made)))


def _fetch(service: Service, results: list[dict[str, Any]], folder: Path) -> list[Path]:
    """All of it, or nothing: it comes into a folder of its own, and is moved when it is whole."""
    names = [_name_of(file) for file in results]
    wanted = [*names, ADAPTER] if ARCHIVE in names else names
    if there := [str(folder / name) for name in wanted if (folder / name).exists()]:
        raise ConfigError(f"{', '.join(there)}: there already; remove it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with TemporaryDirectory(dir=folder, prefix=".download-") as partial:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            for file, name in zip(results, names, strict=True):
                task = progress.add_task(escape(name), total=file["bytes"])
                with (Path(partial) / name).open("wb") as target:
                    for piece in service.content(file["id"]):
                        target.write(piece)
                        progress.advance(task, len(piece))
        if ARCHIVE in names:
            unpack(Path(partial) / ARCHIVE, Path(partial) / ADAPTER)
        for name in wanted:
            os.replace(Path(partial) / name, folder / name)
    return [folder / name for name in wanted]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz of plain files. Raises JengaError if it is none, or has a member that is something else or would
    lie outside the folder."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _unpack_member(tar, member, folder)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise JengaError(f"{archive.name} is not unpacked: {error}") from error


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """By hand: `tarfile`'s filters are not in every Python 3.11. Raises OSError."""
    target = (folder / member.name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise OSError(f"{member.name!r} would lie outside the destination")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isfile() else None
    if source is None:
        raise OSError(f"{member.name!r} is no plain file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def _name_of(file: dict[str, Any]) -> str:
    """The name that the service gives it; it must not lead elsewhere. Raises JengaError."""
    name = str(file["filename"])
    if name in ("", ".", "..") or PurePath(name).name != name:
        raise JengaError(f"{file['id']} is called {name!r}, which is no plain file name; it is not downloaded")
    return name

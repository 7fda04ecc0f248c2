"""`jenga estimate`: what a job would need, before it is queued."""

from __future__ import annotations

from typing import Any

import typer

from cli import amounts
from cli.connection import connected
from cli.options import Options
from cli.output import Json, emit, say, show, table
from cli.settings import DataDir, settings_of
from cli.submit import BatchSize, Epochs, File, Gpus, Model, remove, request_of, stored


def estimate(
    file: File,
    model: Model,
    option: Options = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    gpus: Gpus = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Rows, steps, time, memory on each device and the longest context that fits.

    Exit code 1 if the job would be refused, or fits none of the devices that are there.

    A file that is not on the server yet is uploaded for it, and deleted again.
    """
    request = request_of(model, option, epochs, batch_size, gpus=gpus)
    with connected(settings_of(data_dir)) as service:
        uploads: list[str] = []
        try:
            request["training_file"] = stored(service, file, uploads)
            answer = service.post("/fine_tuning/estimates", json=request)
        finally:
            remove(service, uploads)
    if as_json:
        emit(answer)
    else:
        _show(answer)
    fits_none = bool(answer["devices"]) and not any(device["fits"] for device in answer["devices"])
    if answer["valid"] and fits_none:
        say("It fits no device that is there: it would wait for a larger one, or run out of memory.")
    if fits_none or not answer["valid"]:
        raise typer.Exit(1)


def _show(answer: dict[str, Any]) -> None:
    for error in answer["errors"]:
        say(f"Row {error['row']}: {error['message']}" if error["row"] else error["message"])
    known = {
        "rows": _count(answer["rows"]),
        "tokens": _count(answer["tokens"]),
        "cut off": amounts.many(answer["tokens_cut"], "token") if answer["tokens_cut"] else None,
        "steps": _count(answer["steps"]),
        "time": _range(answer["seconds"]),
    }
    for name, value in known.items():
        if value is not None:
            print(f"{name:8} {value}")
    if answer["memory"]:
        print()
        waits = any(each["host_bytes"] for each in answer["memory"])
        rows = table("setting", "memory, expected>", "from>", "to>", *(["of the host>"] if waits else []))
        for each in answer["memory"]:
            names = ("expected", "low", "high", *(["host"] if waits else []))
            rows.add_row(each["setting"], *(amounts.size(each[f"{name}_bytes"]) for name in names))
        show(rows)
    if answer["devices"]:
        print()
        rows = table("device", "memory>", "fits", "longest context, tokens>")
        for device in answer["devices"]:
            fits = "yes" if device["fits"] else "no"
            longest = _count(device["longest_context_tokens"]) or "-"
            rows.add_row(device["name"], amounts.size(device["memory_bytes"]), fits, longest)
        show(rows)
    if answer["advice"]:
        print(f"\n{answer['advice']}")


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _range(seconds: dict[str, float] | None) -> str:
    if seconds is None:
        return "not known yet: no job like it has run here"
    low, expected, high = (amounts.duration(seconds[name]) for name in ("low", "expected", "high"))
    return f"{expected} ({low} to {high})"

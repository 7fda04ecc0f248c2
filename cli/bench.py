"""`jenga bench NAME ...`: the project's measurements, on this machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import typer

from jenga_core.errors import JengaError


def bench(context: typer.Context) -> None:
    """Run `python -m benchmarks NAME ...`; without a name it says which there are."""
    if importlib.util.find_spec("benchmarks") is None:
        raise JengaError("the benchmarks are not installed with Jenga; run this in a checkout of its sources")
    raise typer.Exit(subprocess.run([sys.executable, "-m", "benchmarks", *context.args]).returncode)


# Everything after `bench` is the benchmark's own, `--help` included.
bench.context_settings = {  # type: ignore[attr-defined]
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}

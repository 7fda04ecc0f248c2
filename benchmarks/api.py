"""How fast the API answers when it holds a lot: `python -m benchmarks api`, on SQLite and on PostgreSQL.

One team has 10,000 jobs with 1,000,000 events. One API process (uvicorn, as `jenga up` runs it) serves

    sequential   one client, one request after the other: percentiles of the whole round trip, and processor time of
                 the API for each, which other work on the machine does not change
    pollers      200 clients that each ask for a job every 2.5 seconds with its ETag, as the status page does
    upload       2 GB in one request: memory of the API process before and at most

Everything runs on one machine, clients included, so the figures are upper bounds; on a machine that does other work,
mind `load_before` in the results, or give this a priority with `nice`. The goals are in GOALS; the JSON file
says which were met, and this command fails when one was not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from sqlalchemy import make_url

from benchmarks.api_data import Filled, fill
from benchmarks.environment import commit
from jenga_core.service.processes import dies_with_this
from jenga_core.service.settings import Settings

GOALS = {
    "list_p95_ms": 50.0,
    "retrieve_p95_ms": 20.0,
    "poller_errors": 0,
    "upload_rss_growth_mb": 50.0,
}
"""At most."""

POSTGRES_URL = os.environ.get("JENGA_BENCH_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
START_SECONDS = 60
POLL_SECONDS = 2.5
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Api:
    """A running API process."""

    port: int
    process: psutil.Process
    headers: dict[str, str]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


def main(argv: list[str]) -> int:
    """Measure, print, write one file per database; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks api", description=__doc__)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=500, help="of each kind, one after the other")
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--poll-for", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--upload-bytes", type=int, default=2_000_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    missed = 0
    for kind in options.databases:
        measured = measure(kind, options)
        missed += len(measured["missed"])
        (options.out / f"api-{kind}.json").write_text(json.dumps(measured, indent=2) + "\n")
        print(json.dumps(measured, indent=2), flush=True)
    return 1 if missed else 0


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures on one kind of database."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jenga-bench-")))
        url = stack.enter_context(new_database(kind, folder))
        settings = Settings(data_dir=folder, database_url=url, broker_url="memory://", requests_per_minute=0)
        began = time.monotonic()
        filled = fill(settings, jobs=options.jobs, events=options.events)
        filling = time.monotonic() - began
        api = stack.enter_context(serving(settings, filled.key))
        load = os.getloadavg()[0]
        sequential = measure_sequential(api, filled, options.requests)
        pollers = asyncio.run(measure_pollers(api, filled, options.pollers, options.poll_for))
        upload = measure_upload(api, folder, options.upload_bytes)
    figures = {
        "list_p95_ms": sequential["list"]["p95_ms"],
        "retrieve_p95_ms": sequential["retrieve"]["p95_ms"],
        "poller_errors": pollers["errors"],
        "upload_rss_growth_mb": upload["rss_growth_mb"],
    }
    return {
        "environment": {**environment(kind), "load_before": round(load, 2)},
        "data": {"jobs": options.jobs, "events": options.events, "seconds_to_fill": round(filling, 1)},
        "goals": GOALS,
        "figures": figures,
        "missed": [name for name, goal in GOALS.items() if figures[name] > goal],
        "sequential": sequential,
        "pollers": pollers,
        "upload": upload,
    }


def measure_sequential(api: Api, filled: Filled, count: int) -> dict[str, Any]:
    """Round trips of one client on one connection, in milliseconds."""
    jobs, ids = "/v1/fine_tuning/jobs", filled.job_ids
    middle = ids[len(ids) // 2]

    def spread(number: int) -> str:
        return ids[number * 7919 % len(ids)]

    requests: dict[str, Any] = {
        "list": lambda _: (jobs, {"limit": 20}),
        "list_deep": lambda _: (jobs, {"limit": 20, "after": middle}),
        "list_100": lambda _: (jobs, {"limit": 100}),
        "list_by_metadata": lambda _: (jobs, {"limit": 20, "metadata[project]": "p7"}),
        "retrieve": lambda number: (f"{jobs}/{spread(number)}", {}),
        "events": lambda number: (f"{jobs}/{spread(number)}/events", {"limit": 20}),
        "metrics_thinned": lambda _: (f"{jobs}/{filled.long_job_id}/metrics", {"max_points": 500}),
        "files": lambda _: ("/v1/files", {"limit": 20}),
        "me": lambda _: ("/v1/me", {}),
        "fleet": lambda _: ("/v1/fleet", {}),
    }
    with httpx.Client(base_url=api.url, headers=api.headers, timeout=60, trust_env=False) as client:
        measured = {}
        for name, request in requests.items():
            taken: list[float] = []
            for number in range(count + 10):
                if number == 10:  # the first ones warm caches
                    taken.clear()
                    used = _cpu_seconds(api)
                path, params = request(number)
                began = time.perf_counter()
                client.get(path, params=params).raise_for_status()
                taken.append(1000 * (time.perf_counter() - began))
            measured[name] = {**percentiles(taken), "api_cpu_ms": round(1000 * (_cpu_seconds(api) - used) / count, 2)}
        return measured


async def measure_pollers(api: Api, filled: Filled, pollers: int, seconds: float) -> dict[str, Any]:
    """Clients that poll one job each; those that ended answer 304 from the second request on.

    Each has a bare connection: two hundred of a client library in one process would measure the library.
    """
    taken: list[float] = []
    statuses: dict[str, int] = {}
    ends = time.monotonic() + seconds

    async def poll(number: int) -> None:
        path, tag = f"/v1/fine_tuning/jobs/{filled.job_ids[number % len(filled.job_ids)]}", ""
        await asyncio.sleep(POLL_SECONDS * number / pollers)
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        while time.monotonic() < ends:
            began = time.perf_counter()
            try:
                status, tag = await asyncio.wait_for(_get(reader, writer, path, api.headers, tag), 60)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                status = type(error).__name__
            took = time.perf_counter() - began
            taken.append(1000 * took)
            statuses[status] = statuses.get(status, 0) + 1
            await asyncio.sleep(max(0.0, POLL_SECONDS - took))
        writer.close()

    await asyncio.gather(*(poll(number) for number in range(pollers)))
    good = sum(count for status, count in statuses.items() if status in ("200", "304"))
    return {
        "pollers": pollers,
        "seconds": seconds,
        "requests": len(taken),
        "errors": len(taken) - good,
        "statuses": statuses,
        **percentiles(taken),
    }


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], tag: str
) -> tuple[str, str]:
    """One request on an open connection; status and ETag."""
    wanted = {"host": "127.0.0.1", **headers, **({"if-none-match": tag} if tag else {})}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in wanted.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    await reader.readexactly(int(found.get("content-length", 0)))
    return head[0].split()[1], found.get("etag", "")


def measure_upload(api: Api, folder: Path, size: int) -> dict[str, Any]:
    """One upload of so many bytes; resident memory of the API process, sampled every 20 ms."""
    row = json.dumps({"text": "word " * 13_000}).encode() + b"\n"
    path = folder / "upload.jsonl"
    with path.open("wb") as file:
        for _ in range(size // len(row)):
            file.write(row)
    before = peak = api.process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, api.process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        with path.open("rb") as file, httpx.Client(headers=api.headers, timeout=600, trust_env=False) as client:
            answer = client.post(f"{api.url}/v1/files", files={"file": file}, data={"purpose": "fine-tune"})
    finally:
        done.set()
        watcher.join()
    took = time.monotonic() - began
    uploaded = answer.raise_for_status().json()
    assert (uploaded["status"], uploaded["bytes"]) == ("processed", path.stat().st_size), uploaded
    path.unlink()
    return {
        "bytes": uploaded["bytes"],
        "seconds": round(took, 1),
        "rss_before_mb": round(before / 1e6, 1),
        "rss_peak_mb": round(peak / 1e6, 1),
        "rss_growth_mb": round((peak - before) / 1e6, 1),
    }


@contextmanager
def serving(settings: Settings, key: str) -> Iterator[Api]:
    """One uvicorn process on a free port, until the block ends."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        environ = {
            **os.environ,
            "JENGA_DATA_DIR": str(settings.data_dir),
            "JENGA_DATABASE_URL": settings.database,
            "JENGA_BROKER_URL": "memory://",
            "JENGA_REQUESTS_PER_MINUTE": "0",
        }
        argv = [sys.executable, "-m", "cli.serve", str(listener.fileno())]
        process = subprocess.Popen(
            argv,
            env=environ,
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=dies_with_this(signal.SIGTERM),
        )
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the API did not answer within {START_SECONDS} s")
                time.sleep(0.1)
            yield Api(port, psutil.Process(process.pid), {"Authorization": f"Bearer {key}"})
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def new_database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database, gone when the block ends."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'jenga.db'}"
        return
    name = f"jenga_bench_{os.getpid()}"
    with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            url = make_url(POSTGRES_URL).set(drivername="postgresql+psycopg", database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def environment(kind: str) -> dict[str, Any]:
    """What this was measured on."""
    server = sqlite3.sqlite_version
    if kind == "postgresql":
        with psycopg.connect(POSTGRES_URL) as connection:
            server = str(connection.execute("SHOW server_version").fetchone()[0])  # type: ignore[index]
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "niceness": os.nice(0),
        "commit": commit(),
        "python": platform.python_version(),
        kind: server,
        **{name: version(name) for name in ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "pydantic")},
    }


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest."""
    ordered = sorted(milliseconds)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "p99_ms": at(0.99), "max_ms": round(ordered[-1], 2)}


def _cpu_seconds(api: Api) -> float:
    """Processor time of the API process so far; unlike the clock, other processes do not change it."""
    times = api.process.cpu_times()
    return times.user + times.system


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"

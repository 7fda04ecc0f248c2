"""`jenga up`: the whole service in the foreground, and `jenga migrate`, its first step alone.

    jenga up
      |- broker   embedded valkey-server, unless JENGA_BROKER_URL names one
      |- api      uvicorn
      |- worker   Celery, queue `run`: a job for each device at once, each in a trainer process of its own
      `- ops      Celery, queue `ops`, with beat: takes back lost jobs, rings forgotten doorbells

The one line on stdout comes when all of them answer. What they print is in DATA_DIR/logs. A child that dies is started
again, a few times; SIGINT or SIGTERM stops them in order: no new requests, then no jobs, then no broker.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
from alembic.util import CommandError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from cli.children import Child, tail
from cli.connection import address_file
from cli.output import Json, emit, emit_line
from cli.settings import DataDir, settings_of
from jenga_core.errors import ConfigError, ConflictError, JengaError
from jenga_core.service import embedded
from jenga_core.service.accounts.first_key import ensure_first_key
from jenga_core.service.jobs import queue
from jenga_core.service.settings import Settings
from migrations.upgrade import upgrade

READY_SECONDS = 120.0
"""All children must answer within this time of the start."""

POLL_SECONDS = 0.25


class _Stopped(Exception):
    """SIGINT or SIGTERM came."""


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Jobs that run at the same time.", show_default="one for each device"),
    ] = None,
    as_json: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Start Jenga in the foreground: API, workers and, unless JENGA_BROKER_URL is set, a broker."""
    settings = settings_of(data_dir)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        with ExitStack() as stack:
            stack.enter_context(_alone(settings))
            listener = stack.enter_context(_listening(host, port))
            address = _address(host, listener)
            prepare(settings)
            children = _start(stack, settings, listener, address, workers)
            stack.enter_context(_recorded(address_file(settings), address))
            if as_json:
                emit_line(
                    {"url": address, "data_dir": str(settings.data_dir), "key_file": str(settings.admin_key_file)}
                )
            else:
                print(f"Jenga is ready at {address} (data folder {settings.data_dir}: admin.key, logs/)", flush=True)
            while True:
                time.sleep(POLL_SECONDS)
                for child in children:
                    if restarted := child.keep_alive():
                        print(restarted, file=sys.stderr, flush=True)
    except _Stopped:
        return


def migrate(as_json: Json = False, data_dir: DataDir = None) -> None:
    """Make the data folder, bring the database to the newest schema, and make the first API key."""
    settings = settings_of(data_dir)
    prepare(settings)
    if as_json:
        emit({"data_dir": str(settings.data_dir), "key_file": str(settings.admin_key_file)})
        return
    print(f"{settings.data_dir} is ready; the first API key is in {settings.admin_key_file}")


def prepare(settings: Settings) -> None:
    """Data folder, migrated database, first key. Doing it again changes nothing. ConfigError: no usable database."""
    try:
        settings.folder()
    except OSError as error:
        raise ConfigError(f"the data folder {settings.data_dir} cannot be made: {error}; give another") from error
    try:
        upgrade(settings)
    except OperationalError as error:
        raise ConfigError(f"the database {make_url(settings.database)!r} cannot be used: {error.orig}") from error
    except CommandError as error:
        raise ConfigError(
            f"the database {make_url(settings.database)!r} was made by a newer Jenga ({error}); install that one, or "
            "give another database"
        ) from error
    ensure_first_key(settings)


def _start(
    stack: ExitStack, settings: Settings, listener: socket.socket, address: str, workers: int | None
) -> list[Child]:
    """Start every child and wait until it answers; the stack stops them in reverse: API last in, first out."""
    deadline = time.monotonic() + READY_SECONDS
    logs = settings.folder("logs")
    env = {**os.environ, "JENGA_DATA_DIR": str(settings.data_dir), "PYTHONUNBUFFERED": "1"}
    children: list[Child] = []

    def start(name: str, argv: list[str], *, stop_seconds: float, pass_fds: tuple[int, ...] = ()) -> None:
        child = Child(name, argv, logs / f"{name}.log", env, settings.data_dir, stop_seconds, pass_fds)
        stack.callback(child.stop)
        child.start()
        children.append(child)

    def wait(what: str, ready: Callable[[], bool]) -> None:
        while not ready():
            for child in children:
                child.check()
            if time.monotonic() > deadline:
                raise JengaError(f"{what} did not answer within {READY_SECONDS:.0f} seconds; see the logs in {logs}")
            time.sleep(POLL_SECONDS)

    if settings.broker_url is None:
        path = stack.enter_context(embedded.socket_folder()) / "broker.sock"
        start("broker", embedded.command(path, settings.folder("broker")), stop_seconds=5)
        stack.enter_context(_recorded(settings.broker_address_file, embedded.url(path)))
        wait("the broker", lambda: embedded.answers(path))
    else:
        queue.check(settings)

    run, ops = (f"{role}-{secrets.token_hex(3)}@{socket.gethostname()}" for role in ("run", "ops"))
    start("worker", _celery(run, queue.RUN_QUEUE, workers), stop_seconds=40)
    start("ops", _celery(ops, queue.OPS_QUEUE, 2, "--beat"), stop_seconds=10)
    descriptor = listener.fileno()
    start("api", [sys.executable, "-m", "cli.serve", str(descriptor)], stop_seconds=10, pass_fds=(descriptor,))

    wait("the API", lambda: _healthy(address))
    wait("the worker", lambda: f"{run} ready." in tail(logs / "worker.log", lines=500))
    wait("the ops worker", lambda: f"{ops} ready." in tail(logs / "ops.log", lines=500))
    return children


def _celery(node: str, queue_name: str, concurrency: int | None, *options: str) -> list[str]:
    """A Celery worker on one queue; at log level INFO it says `<node> ready.` when it listens."""
    worker = [sys.executable, "-m", "celery", "--app", "worker.app", "worker", "--loglevel", "INFO"]
    at_once = [] if concurrency is None else ["--concurrency", str(concurrency)]
    return [*worker, "--hostname", node, "--queues", queue_name, *at_once, *options]


def _healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the data folder's lock; the kernel lets go of it when this process ends, however it ends."""
    with (settings.folder() / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConflictError(
                f"`jenga up` already runs on {settings.data_dir} (process {file.read().strip() or 'unknown'}); "
                "stop it first, or choose another --data-dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """The API's socket, opened here so that a port in use is said at once."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {(error.strerror or str(error)).partition(' (')[0]}; "
            "choose another --port (0 takes a free one) or --host"
        ) from error
    with listener:
        yield listener


def _address(host: str, listener: socket.socket) -> str:
    """The URL to reach the listener at; from this machine when it listens on every address."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{listener.getsockname()[1]}"


@contextmanager
def _recorded(path: Path, text: str) -> Iterator[None]:
    """A one-line file for as long as the block lasts."""
    path.write_text(text + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _stop(_signal: int, _frame: object) -> None:
    """Ask once; what follows is bounded, and further signals must not interrupt the stopping itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise _Stopped

"""Servers of a test's own: PostgreSQL from initdb, and a broker. They may be killed; those of the machine may not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import redis

from jenga_core.service import embedded
from jenga_core.service.processes import dies_with_this
from tests.support.processes import until


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Process:
    """Something that is started, killed and started again."""

    def __init__(self, name: str, argv: Sequence[str], folder: Path, **options: object) -> None:
        self.name, self.argv, self.log, self.options = name, list(argv), folder / f"{name}.log", options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_this(signal.SIGKILL),
                **self.options,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)


class Postgres(Process):
    """A server on a port of its own. Run by root, it belongs to the user `postgres`, as the server demands."""

    def __init__(self, logs: Path, own_folder: Path) -> None:
        """Its data goes into `own_folder`, which the server's user must be able to enter; pytest's folders are shut."""
        found = shutil.which("initdb") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)
        if found is None:
            pytest.skip("no initdb: install PostgreSQL's server, or put its bin folder on PATH")
        bin_folder = Path(found).resolve().parent
        data = own_folder / "postgres"
        user: dict[str, object] = {}
        data.mkdir()
        if os.getuid() == 0:
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(data, "postgres", "postgres")
            own_folder.chmod(0o711)
        initdb = [str(bin_folder / "initdb"), "--auth=trust", "--username=postgres", "--no-sync", "-D", str(data)]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)  # type: ignore[call-overload]
        self.port = free_port()
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        super().__init__("postgres", [str(bin_folder / "postgres"), "-D", str(data), *options], logs, cwd="/", **user)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        super().start()
        until(self.answers, 60)

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class Broker(Process):
    """The embedded broker on a unix socket, or a Redis server on a port. Neither keeps anything when it dies."""

    def __init__(self, kind: str, folder: Path, socket_folder: Path) -> None:
        self._folder = folder
        if kind == "valkey":
            path = socket_folder / "broker.sock"
            self.url = embedded.url(path)
            argv = embedded.command(path, folder)
        else:
            port = free_port()
            self.url = f"redis://127.0.0.1:{port}/0"
            program = shutil.which("redis-server") or shutil.which("valkey-server")
            if program is None:
                pytest.skip("no redis-server and no valkey-server on PATH")
            argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        super().__init__("broker", argv, folder, cwd=folder)

    def start(self) -> None:
        super().start()
        until(self.answers, 60)

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url.replace("redis+socket://", "unix://")) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

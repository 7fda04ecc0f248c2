"""The API process of `jenga up`: `python -m cli.serve FD` serves on a listening socket that the parent opened.

The parent owns the socket: a port in use is known before anything starts, port 0 works, and while the API is restarted
callers wait in the backlog instead of being refused. (`uvicorn --fd` takes any descriptor for a unix socket, which
leaves Nagle's algorithm on.)
"""

from __future__ import annotations

import socket
import sys

import uvicorn


def main(descriptor: int) -> None:
    """Serve until SIGTERM; open requests get 5 seconds to end."""
    config = uvicorn.Config(
        "api.app:create_app", factory=True, lifespan="on", timeout_graceful_shutdown=5, server_header=False
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""The API behind a sub-path on a port of its own, and a browser to look at it with."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from api.app import create_app
from jenga_core.service.settings import Settings

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NO_CHROMIUM = "no chromium on PATH (Debian: apt-get install chromium; or set CHROMIUM)"
MOUNT = "/tools/jenga"

# A root user cannot run the sandbox; the rest keeps the browser from calling home.
_FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_FLAGS += ["--disable-component-update", "--disable-sync", "--no-sandbox"]


def launch(playwright: Any) -> Any:
    """A headless browser of this machine; the caller closes it."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)


class Server:
    """uvicorn in a thread, on a port that stays the same over stop and start."""

    def __init__(self, settings: Settings) -> None:
        self.app = Starlette(routes=[Mount(MOUNT, create_app(settings))])
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{MOUNT}/"

    def start(self) -> None:
        """Serve; returns once connections are taken."""
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=self.port, ws="none", log_level="critical", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            assert self._thread.is_alive(), "uvicorn ended before it served"
            assert time.monotonic() < deadline, "uvicorn did not start within 30 s"
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop serving and wait until the port is free."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

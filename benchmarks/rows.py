"""A results file that grows row by row: what is there is not run again, and runs share the device.

Every worker is one process that loads torch and the texts once and then runs rows as it is handed them: a row's key
comes in as a line of JSON on its standard input, the finished row goes out as a line on its standard output. A worker
that dies loses the row it was at, says so, and is replaced.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment

Key = Mapping[str, Any]
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a results file; none where there is no file."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


def serve(run_one: Callable[[Key], Row]) -> int:
    """A worker: run what standard input asks for until it ends."""
    for line in sys.stdin:
        print("row " + json.dumps(run_one(json.loads(line))), flush=True)
    return 0


def run_missing(
    keys: Sequence[Key],
    out: Path,
    worker: Sequence[str],
    *,
    jobs: int,
    deadline_seconds: float,
    line_of: Callable[[Row], str],
    gpus: int = 1,
) -> int:
    """Run the keys that no row of `out` has, `jobs` workers at once; return how many failed.

    Args:
        worker: the command of a worker.
        gpus: of this host, over which the workers spread.
        deadline_seconds: after which no row is started.
        line_of: what is printed of a finished row.
    """
    queue = _Queue(_missing(keys, read(out)), out, deadline_seconds, line_of)
    threads = [
        threading.Thread(target=_feed, args=(queue, worker, index % gpus if gpus > 1 else None))
        for index in range(min(jobs, len(queue.waiting)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if queue.waiting:
        print(f"{len(queue.waiting)} rows left; run the same command again to go on", file=sys.stderr)
    return queue.failures


def _missing(keys: Iterable[Key], rows: Sequence[Row]) -> list[Key]:
    return [key for key in keys if not any(all(row.get(name) == key[name] for name in key) for row in rows)]


class _Queue:
    """What waits and what is done; shared by the threads that feed the workers."""

    def __init__(self, waiting: list[Key], out: Path, deadline_seconds: float, line_of: Callable[[Row], str]) -> None:
        self.waiting = waiting
        self.failures = 0
        self._out = out
        self._line_of = line_of
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._deadline_seconds = deadline_seconds

    def take(self) -> Key | None:
        with self._lock:
            if not self.waiting or time.monotonic() - self._started > self._deadline_seconds:
                return None
            return self.waiting.pop(0)

    def put(self, row: Row) -> None:
        with self._lock:
            rows = [*read(self._out), row]
            self._out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(f"{time.monotonic() - self._started:6.0f} s  {self._line_of(row)}", flush=True)

    def failed(self, key: Key) -> None:
        with self._lock:
            self.failures += 1
            print(f"failed: {json.dumps(dict(key))}", file=sys.stderr, flush=True)


def _feed(queue: _Queue, command: Sequence[str], gpu: int | None) -> None:
    variables = {**os.environ, **environment.only_gpu(gpu)}
    process: subprocess.Popen[str] | None = None
    while (key := queue.take()) is not None:
        if process is None:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(dict(key)) + "\n")
        process.stdin.flush()
        answer = next((line for line in process.stdout if line.startswith("row ")), None)
        if answer is None:
            process.communicate()
            process = None
            queue.failed(key)
        else:
            queue.put(json.loads(answer.removeprefix("row ")))
    if process is not None:
        process.communicate()

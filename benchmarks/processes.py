"""A measurement in a process of its own, without waiting for its imports.

A server process imports PyTorch, transformers and PEFT once, and never opens the GPU. Every measurement is a fork of
it, so nothing of another is in its memory or on its GPU, and it begins within a second. Of our own code it imports what
it needs itself: a baseline runs without. The server keeps the environment in which the first measurement began. A
program that measures so must be guarded by `if __name__ == "__main__"`: its module is imported by every fork.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from benchmarks import environment

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED_ONCE = [
    "triton",
    "peft",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "opt", "qwen3")),
]
_CONTEXT.set_forkserver_preload(_IMPORTED_ONCE)

ALLOCATOR = "expandable_segments:True"
"""For everybody: without it, blocks of different sizes do not fit together and a policy runs out of memory early."""


class Failed(Exception):
    """The process of a measurement died; its words."""


def measured_apart(
    measure: Callable[..., dict[str, Any]], *arguments: Any, seconds: float | None = None, gpu: int | None = None
) -> dict[str, Any]:
    """What `measure(*arguments, device)` returns; a function of a module, with arguments that can be pickled.

    Args:
        seconds: after which it is killed.
        gpu: of this host; None: the first that is visible.

    Raises:
        Failed: it raised, or its process died.
        TimeoutError: it took longer.
    """
    here, there = _CONTEXT.Pipe(duplex=False)
    variables = {"PYTORCH_CUDA_ALLOC_CONF": ALLOCATOR, **environment.only_gpu(gpu)}
    process = _CONTEXT.Process(target=_measure, args=(there, variables, measure, arguments), daemon=True)
    with _REAPING:
        process.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise TimeoutError(f"not done after {seconds:.0f} s")
        found, words = here.recv()
    except EOFError:
        _reap(process)
        raise Failed(f"the process died with exit status {process.exitcode}") from None
    finally:
        process.kill()  # it has nothing left to do but to end
        _reap(process)
        here.close()
    if found is None:
        raise Failed(words)
    return dict(found)


_REAPING = threading.Lock()
"""Who starts a process asks after all others, and of two threads that ask after one, one does not hear how it ended."""


def _reap(process: Any) -> None:
    wait([process.sentinel])
    with _REAPING:
        process.join()


def _measure(
    there: Connection, variables: dict[str, str], measure: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(variables)
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        there.send((measure(*arguments, device), ""))
    except Exception:  # noqa: BLE001 - the boundary of the process: whatever it is, it must be told
        there.send((None, traceback.format_exc()[-3000:]))

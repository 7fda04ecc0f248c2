"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def dies_with_this(number: signal.Signals) -> Callable[[], None]:
    """For subprocess.Popen(preexec_fn=...): the kernel sends the child `number` when this process dies, however it
    dies.

    Call it in the parent, from the thread that stays with the child: to the kernel, that thread is the parent.
    Elsewhere than on Linux it does nothing. After the fork it only calls functions that were loaded before it.
    """
    parent = os.getpid()

    def preexec() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
            if os.getppid() != parent:  # it died in between
                os._exit(1)

    return preexec


def end_with_parent(number: signal.Signals) -> None:
    """In a process that was forked: the kernel sends it `number` when its parent dies. Only on Linux."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)

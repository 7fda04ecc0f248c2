"""What the kernel knows of our cgroup's memory: how much it may use, and how often a process was killed for want of it.

The trainer is killed by SIGKILL either way; only this counter tells running out of memory from somebody's `kill -9`.
"""

from __future__ import annotations

from pathlib import Path

OWN_CGROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def oom_kills() -> int | None:
    """The count for this process's memory cgroup (version 2, or 1); None where there is none to read."""
    for path in _files("memory.events", "memory.oom_control"):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def limit_bytes() -> int | None:
    """The least that this process's memory cgroup or one above it may use; None where nothing limits it."""
    limits = []
    for path in _files("memory.max", "memory.limit_in_bytes", and_above=True):
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # "max": no limit
            continue
    return min(limits, default=None)


def _files(version_2: str, version_1: str, *, and_above: bool = False) -> list[Path]:
    """Where a file of our memory cgroup may be, likeliest first; of those above it, too."""
    try:
        entries = [line.split(":", 2) for line in OWN_CGROUP.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in entries:
        if controllers == "":
            mount, name = MOUNT, version_2
        elif "memory" in controllers.split(","):
            mount, name = MOUNT / "memory", version_1
        else:
            continue
        own = Path(path.lstrip("/"))
        # The path may be the host's view while the container sees its own group at the mount's root.
        groups = [own, *own.parents] if and_above else [own, Path()]
        found += [mount / group / name for group in dict.fromkeys(groups)]
    return found

"""How often the kernel killed a process of our cgroup because memory ran out.

The trainer is killed by SIGKILL either way; only this counter tells running out of memory from somebody's `kill -9`.
"""

from __future__ import annotations

from pathlib import Path

OWN_CGROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def oom_kills() -> int | None:
    """The count for this process's memory cgroup (version 2, or 1); None where there is none to read."""
    for path in _counters():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def _counters() -> list[Path]:
    try:
        entries = [line.split(":", 2) for line in OWN_CGROUP.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in entries:
        # The path may be the host's view while the container sees its own group at the mount's root.
        if controllers == "":
            found += [MOUNT / path.lstrip("/") / "memory.events", MOUNT / "memory.events"]
        elif "memory" in controllers.split(","):
            found += [
                MOUNT / "memory" / path.lstrip("/") / "memory.oom_control",
                MOUNT / "memory" / "memory.oom_control",
            ]
    return found

"""The counter of out-of-memory kills, where the kernel of either cgroup version puts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker import host_memory


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_memory, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(host_memory, "OWN_CGROUP", tmp_path / "cgroup")
    return tmp_path / "mount"


@pytest.mark.parametrize(
    ("own", "file", "text"),
    [
        ("0::/jobs\n", "jobs/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("0::/seen/from/the/host\n", "memory.events", "oom_kill 2\n"),
        (
            "5:cpu:/\n7:memory:/jobs\n",
            "memory/jobs/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
        ("7:memory:/from/host\n", "memory/memory.oom_control", "oom_kill 2\n"),
    ],
)
def test_it_reads_the_count(mount: Path, tmp_path: Path, own: str, file: str, text: str) -> None:
    (tmp_path / "cgroup").write_text(own)
    (mount / file).parent.mkdir(parents=True)
    (mount / file).write_text(text)
    assert host_memory.oom_kills() == 2


def test_without_a_counter_there_is_none(mount: Path) -> None:
    assert host_memory.oom_kills() is None
    assert host_memory.limit_bytes() is None


@pytest.mark.parametrize(
    ("own", "files", "least"),
    [
        ("0::/jobs\n", {"jobs/memory.max": "4096\n"}, 4096),
        ("0::/jobs\n", {"jobs/memory.max": "max\n"}, None),
        (
            "0::/all.slice/jobs.service\n",
            {"all.slice/jobs.service/memory.max": "max", "all.slice/memory.max": "64"},
            64,
        ),
        ("0::/seen/from/the/host\n", {"memory.max": "4096\n"}, 4096),
        ("7:memory:/jobs\n", {"memory/jobs/memory.limit_in_bytes": "4096\n"}, 4096),
    ],
)
def test_it_reads_the_limit(mount: Path, tmp_path: Path, own: str, files: dict[str, str], least: int | None) -> None:
    (tmp_path / "cgroup").write_text(own)
    for file, text in files.items():
        (mount / file).parent.mkdir(parents=True, exist_ok=True)
        (mount / file).write_text(text)
    assert host_memory.limit_bytes() == least

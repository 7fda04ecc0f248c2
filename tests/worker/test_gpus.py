"""Who gets which device. `nvidia-smi` is a script here, so this runs on any machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jenga_core.service.settings import Settings
from tests.support.processes import until
from worker import gpus
from worker.gpus import Device, reserve
from worker.stop import Stop

TWO = [Device("GPU-a", "H100", 80 * 2**30), Device("GPU-b", "H100", 80 * 2**30)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def fake_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [(None, ["GPU-a", "GPU-b"]), ("1", ["GPU-b"]), ("GPU-a", ["GPU-a"]), ("0, 1", ["GPU-a", "GPU-b"]), ("", ["cpu"])],
)
def test_the_inventory_is_what_cuda_would_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, uuids: list[str]
) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo '0, GPU-a, NVIDIA H100, 81559'; echo '1, GPU-b, NVIDIA H100, 81559'")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = gpus.inventory()
    assert [device.uuid for device in found] == uuids
    if uuids != ["cpu"]:
        assert (found[0].name, found[0].memory_bytes) == ("NVIDIA H100", 81559 * 2**20)


def test_a_driver_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'no driver'; exit 9")
    assert [device.uuid for device in gpus.inventory()] == ["cpu"]
    assert "no driver" in caplog.text


def test_a_machine_without_gpus_is_one_cpu_for_all(
    settings: Settings, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with reserve(settings, stop) as first, reserve(settings, stop) as second:
        assert first is not None
        assert second is not None
        assert first.device == second.device
        assert (first.device.uuid, dict(first.environment), first.keep_open) == ("cpu", {}, ())
        assert first.device.memory_bytes > 2**20


def test_every_job_has_its_own_gpu_and_the_next_one_waits(settings: Settings, stop: Stop) -> None:
    got: list[str] = []

    def third() -> None:
        with reserve(settings, stop, TWO) as place:
            assert place is not None
            got.append(place.device.uuid)

    with reserve(settings, stop, TWO) as first:
        with reserve(settings, stop, TWO) as second:
            assert first is not None
            assert second is not None
            assert [first.device.uuid, second.device.uuid] == ["GPU-a", "GPU-b"]
            assert second.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
            waiting = threading.Thread(target=third)
            waiting.start()
            waiting.join(0.3)
            assert got == []
        until(lambda: got == ["GPU-b"])
        waiting.join(60)


def test_waiting_ends_when_the_worker_stops(settings: Settings, stop: Stop) -> None:
    stop.set()
    with reserve(settings, stop, TWO[:1]) as held, reserve(settings, stop, TWO[:1]) as place:
        assert held is not None
        assert place is None


def test_a_trainer_that_lives_on_keeps_its_gpu(settings: Settings, stop: Stop) -> None:
    with reserve(settings, stop, TWO) as place:
        assert place is not None
        code = "import sys; sys.stdin.read()"
        trainer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=place.keep_open)
    try:
        with reserve(settings, stop, TWO) as other:
            assert other is not None
            assert other.device.uuid == "GPU-b"
    finally:
        trainer.communicate(timeout=60)
    with reserve(settings, stop, TWO) as again:
        assert again is not None
        assert again.device.uuid == "GPU-a"

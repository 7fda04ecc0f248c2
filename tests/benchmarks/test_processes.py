"""Measurements in processes of their own: results, errors and deaths come back."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from benchmarks import ceilings, plans, step
from benchmarks.processes import Failed, measured_apart
from benchmarks.shapes import SHAPES


def describe(given: int, device: torch.device) -> dict[str, Any]:
    return {"given": given, "device": device.type, "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


def fail(device: torch.device) -> dict[str, Any]:
    raise ValueError(f"no such thing on a {device.type}")


def die(device: torch.device) -> dict[str, Any]:
    os._exit(7)


def sleep(device: torch.device) -> dict[str, Any]:
    time.sleep(60)
    return {}


def test_every_measurement_has_a_process_of_its_own() -> None:
    first, second = (measured_apart(describe, given, gpu=given) for given in (3, 4))
    assert (first["given"], first["gpus"], second["gpus"]) == (3, "3", "4")
    assert len({first["pid"], second["pid"], os.getpid()}) == 3


def test_a_row_and_ceilings_come_out_of_theirs() -> None:
    row = measured_apart(step.measure, plans.row("tiny", 128, "lora"), 1)
    assert (row["policy"], row["tokens"]) == ("lora", 128)
    found = measured_apart(ceilings.measure, SHAPES["tiny"])
    assert [tokens for tokens, _, _ in found["attention_tflops"]] == [64, 128]
    assert all(forward > 0 and backward > 0 for _, forward, backward in found["attention_tflops"])


def test_what_went_wrong_is_told() -> None:
    with pytest.raises(Failed, match="ValueError: no such thing on a "):
        measured_apart(fail)
    with pytest.raises(Failed, match="exit status 7"):
        measured_apart(die)


def test_who_takes_too_long_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="not done after 1 s"):
        measured_apart(sleep, seconds=1)
    assert time.monotonic() - began < 50


def test_how_each_ended_is_heard_when_several_run_at_once() -> None:
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(measured_apart, die) for _ in range(24)]
    for future in futures:
        with pytest.raises(Failed, match="exit status 7"):
            future.result()

"""The examples do what they say."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model

from jenga_core import JengaConfig
from jenga_core.training_rows import TextRow, read_rows
from tests.support.tiny import save_tiny_model, tiny_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}


def names_of(example: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / example))


def test_the_data_set_is_made_of_long_documents_and_the_same_each_time(tmp_path: Path) -> None:
    build: Callable[[Path], tuple[Path, Path]] = names_of("build_dataset.py")["build"]
    first, second = build(tmp_path / "first"), build(tmp_path / "second")
    for path, again, documents in zip(first, second, (12, 2), strict=True):
        assert path.read_bytes() == again.read_bytes()
        rows = list(read_rows(path.read_bytes().splitlines()))
        assert len(rows) == documents
        assert all(isinstance(row, TextRow) and len(row.text) > 40_000 for row in rows)


def test_no_held_out_document_is_trained_on() -> None:
    names = names_of("build_dataset.py")
    assert not set(names["TRAIN"]) & set(names["HELD_OUT"])


def test_the_library_example_runs() -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "library.py"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "44% of tokens involved, blocks 0 " in done.stdout


@pytest.mark.parametrize(("trained", "exit_code"), [(True, 0), (False, 1)])
def test_an_adapter_passes_the_check_only_if_it_changes_something(
    tmp_path: Path, trained: bool, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny_model(tmp_path / "base")
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=True))
    if trained:  # a fresh adapter's B is zero, so it changes nothing
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    assert names_of("check_adapter.py")["main"](str(base), str(tmp_path / "adapter")) == exit_code
    assert (float(capsys.readouterr().out) > 0) is trained


@pytest.mark.parametrize("example", ["openai_client.py", "demo.py", "check_adapter.py"])
def test_an_example_compiles(example: str) -> None:
    compile((EXAMPLES / example).read_text(), example, "exec")


class FakeClient:
    """OpenAI's client, as the example needs it: a job that makes an event at each look, and ends at the third."""

    def __init__(self, **_: Any) -> None:
        self.files = SimpleNamespace(create=lambda **_: SimpleNamespace(id="file-1"))
        self.fine_tuning = SimpleNamespace(jobs=self)
        self.looks = 0

    def create(self, *, extra_body: dict[str, Any], **_: Any) -> SimpleNamespace:
        JengaConfig.parse(extra_body["jenga"])
        return SimpleNamespace(id="ftjob-1")

    def retrieve(self, job_id: str) -> SimpleNamespace:
        self.looks += 1
        status = "succeeded" if self.looks == 3 else "running"
        return SimpleNamespace(id=job_id, status=status, result_files=[], fine_tuned_model="ft:1")

    def list_events(self, _: str, *, limit: int) -> SimpleNamespace:
        events = [SimpleNamespace(id=number, message=f"event {number}") for number in range(self.looks, 0, -1)]
        return SimpleNamespace(data=events[:limit])


def test_the_openai_example_tells_what_happens_while_it_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told_before_each_wait = []
    monkeypatch.setattr(time, "sleep", lambda _: told_before_each_wait.append(capsys.readouterr().out))
    monkeypatch.setattr(openai, "OpenAI", FakeClient)
    monkeypatch.setattr(sys, "argv", ["openai_client.py", "train.jsonl", "heldout.jsonl"])
    monkeypatch.setenv("JENGA_API_KEY", "key")
    names_of("openai_client.py")
    assert told_before_each_wait == ["event 1\n", "event 2\n"]
    assert capsys.readouterr().out == "event 3\nsucceeded ft:1\n"


@pytest.mark.parametrize("command", [[sys.executable, "openai_client.py"], ["bash", "curl.sh"]])
def test_without_files_an_example_says_how_it_is_called(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=EXAMPLES, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "train.jsonl heldout.jsonl" in done.stderr and "JENGA_BASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_curl_example_parses() -> None:
    subprocess.run(["bash", "-n", EXAMPLES / "curl.sh"], check=True)


def test_the_job_of_the_demo_is_one_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    options = names_of("demo.py")["JENGA_OPTIONS"]
    config = JengaConfig.parse(json.loads(json.dumps(options)))
    assert (config.enabled, config.max_steps, config.selection.keep_fraction) == (True, 12, 0.4)


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """Downloads a model; several minutes on two cores."""
    environment = {**ENVIRONMENT, "DEMO_DIR": str(tmp_path), "KEEP": ""}
    done = subprocess.run([sys.executable, EXAMPLES / "demo.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held-out loss" in done.stdout

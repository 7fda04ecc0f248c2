"""The commands of docker-compose.yml and the Dockerfile exist here, as plain processes, and the files agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jenga_core.service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
OURS = ("migrate", "api", "worker", "ops")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return loaded


def test_the_house_is_complete(services: dict[str, Any]) -> None:
    assert set(services) == {*OURS, "postgres", "redis"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_gets_only_settings_that_exist(services: dict[str, Any], name: str) -> None:
    known = {f"JENGA_{field.upper()}" for field in Settings.model_fields}
    assert set(services[name]["environment"]) <= known


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_built_from_a_stage_of_the_dockerfile(services: dict[str, Any], name: str) -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert services[name]["build"]["target"] in stages


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_image_starts_by_itself_what_compose_starts(services: dict[str, Any], name: str) -> None:
    commands = [json.loads(line) for line in re.findall(r"^CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)]
    assert services[name]["command"] in commands


@pytest.mark.parametrize("name", OURS)
def test_a_services_command_parses_here(services: dict[str, Any], name: str, tmp_path: Path) -> None:
    command = services[name]["command"]
    program = Path(sys.executable).with_name(command[0])
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed beside this Python; `make install` does that")
    environment = {**os.environ, "JENGA_DATA_DIR": str(tmp_path), "JENGA_BROKER_URL": "memory://"}
    done = subprocess.run([program, *command[1:], "--help"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_example_environment_names_only_settings_that_exist() -> None:
    known = {f"JENGA_{field.upper()}" for field in Settings.model_fields}
    of_clients = {"JENGA_BASE_URL", "JENGA_API_KEY", "JENGA_PORT"}
    named = set(re.findall(r"^#? ?(JENGA_\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named <= known | of_clients
    assert known <= named


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_make_target_that_ci_calls_exists() -> None:
    called = re.findall(r"^make (\w+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert called == ["install", "lint", "test"]
    for target in called:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)

"""What the shell offers after Tab: ids of jobs and names of models, asked of the service when it answers quickly."""

from __future__ import annotations

from typing import Any

import httpx

from cli.connection import base_url, key_of
from cli.settings import settings_of
from jenga_core.errors import JengaError

PATIENCE_SECONDS = 2.0
"""A shell that waits longer for a suggestion annoys."""


def job_ids(incomplete: str) -> list[tuple[str, str]]:
    """Jobs, newest first, each with its model and state."""
    jobs = _data("/fine_tuning/jobs?limit=50")
    return [(job["id"], f"{job['model']}, {job['jenga']['state']}") for job in jobs if job["id"].startswith(incomplete)]


def model_names(incomplete: str) -> list[str]:
    """Base models."""
    return [
        each["id"] for each in _data("/models") if each["owned_by"] == "jenga" and each["id"].startswith(incomplete)
    ]


def _data(path: str) -> list[dict[str, Any]]:
    """The entries of a list, or none: a suggestion that cannot be made is no error."""
    try:
        settings = settings_of(None)
        headers = {"Authorization": f"Bearer {key_of(settings)}"}
        answer = httpx.get(f"{base_url(settings)}/v1{path}", headers=headers, timeout=PATIENCE_SECONDS)
        return list(answer.json()["data"])
    except (httpx.HTTPError, JengaError, KeyError, ValueError):
        return []

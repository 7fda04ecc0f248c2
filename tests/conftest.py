"""The fixtures are in tests/support/fixtures.py. A GPU host runs tests/gpu without what the service needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

pytest_plugins = ["tests.support.fixtures"] if find_spec("sqlalchemy") else []


@pytest.fixture(autouse=True)
def _new_memory_holds_nan() -> Iterator[None]:
    """So that whoever reads what nobody has written is found out, on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or torch.cuda.is_available():
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)

"""What a wheel would hold, by the same rules that setuptools reads from pyproject.toml."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.fixture(scope="module")
def packages(setuptools_table: dict[str, Any]) -> set[str]:
    find = setuptools_table["packages"]["find"]
    assert find["namespaces"] is False  # with namespaces, kernels/ and tests/ would become packages
    return {name for where in find["where"] for name in find_packages(str(ROOT / where), include=find["include"])}


def test_the_wheel_holds_our_packages_and_nothing_else(packages: set[str]) -> None:
    top = {name.split(".")[0] for name in packages}
    assert top == {"api", "worker", "cli", "jenga_core", "jenga_kernels", "migrations"}


def test_no_package_is_forgotten(packages: set[str]) -> None:
    """A folder of modules without __init__.py would silently stay out of the wheel."""
    for top in ("api", "worker", "cli", "jenga_core", "migrations", "kernels/jenga_kernels"):
        where = (ROOT / top).parent
        for module in (ROOT / top).rglob("*.py"):
            assert ".".join(module.parent.relative_to(where).parts) in packages, module


def test_data_files_are_named(setuptools_table: dict[str, Any]) -> None:
    data = setuptools_table["package-data"]
    shipped = [(package, path) for package in ("api", "migrations") for path in (ROOT / package).rglob("*")]
    for package, path in shipped:
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            relative = path.relative_to(ROOT / package).as_posix()
            assert any(fnmatch(relative, pattern) for pattern in data[package]), path

"""Who may import whom, checked as a reader of pyproject.toml and as a running interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTABLE = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'kernels')!r}]; "


def python(code: str) -> str:
    """What the code prints, in a fresh interpreter that starts in the repository's root."""
    command = [sys.executable, "-c", IMPORTABLE + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_contracts_hold() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    assert "0 broken" in python(code)


@pytest.mark.parametrize("module", ["api.app", "cli.main", "worker.app", "jenga_core", "migrations.upgrade"])
def test_the_service_starts_without_torch(module: str, tmp_path: Path) -> None:
    heavy = "{'torch', 'triton', 'transformers', 'peft', 'datasets'}"
    code = (
        f"import os; os.environ.update(JENGA_DATA_DIR={str(tmp_path)!r}, JENGA_BROKER_URL='memory://'); "
        f"import importlib; importlib.import_module({module!r}); print(sorted({heavy} & set(sys.modules)))"
    )
    assert python(code) == "[]"


def test_our_kernels_folder_is_not_taken_for_hugging_faces_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "from transformers import LlamaForCausalLM; print(LlamaForCausalLM.__name__)"
    assert python(code) == "LlamaForCausalLM"

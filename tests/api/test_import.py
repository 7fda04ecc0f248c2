"""The API starts without a model stack."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_api_leaves_torch_out() -> None:
    code = (
        "import sys, api.app\n"
        "heavy = {'torch', 'triton', 'transformers', 'peft', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

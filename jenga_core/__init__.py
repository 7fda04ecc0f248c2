"""Jenga: long-context fine-tuning on contextual token sparsity.

Names are resolved on first use (PEP 562), so `import jenga_core` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "JengaCallback": "jenga_core.finetuning.callback",
    "JengaConfig": "jenga_core.config",
    "apply_jenga": "jenga_core.patching.apply",
    "JengaHandle": "jenga_core.patching.apply",
}

__all__ = ["JengaCallback", "JengaConfig", "JengaHandle", "apply_jenga"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

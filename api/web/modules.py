"""Which ES modules a page's script imports, directly or not, so that the page can announce them all at once.

Without that, a browser learns of a module only when it has read the one that imports it: a chain of round trips.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^(?:import|export) .*?from "\./([\w.]+)";$', re.MULTILINE | re.DOTALL)


@cache
def imported_by(script: str) -> tuple[str, ...]:
    """File names of the modules behind `script`, each once, in the order in which a browser would meet them."""
    found: list[str] = []
    queue = [script]
    while queue:
        for name in _IMPORT.findall((STATIC / queue.pop(0)).read_text()):
            if name not in found:
                found.append(name)
                queue.append(name)
    return tuple(found)

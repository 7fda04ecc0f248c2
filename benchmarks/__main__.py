"""`python -m benchmarks NAME ...`: the one entry point of all measurements."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = ("speed", "memory", "profile", "kernels", "quality", "predictors", "plots", "api", "pages")
"""Each is a module of this package with a `main`."""


def main() -> int:
    """Dispatch to the benchmark named first."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: python -m benchmarks {{{','.join(NAMES)}}} [options]", file=sys.stderr)
        return 2
    code: int = import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())

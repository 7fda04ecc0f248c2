"""`python -m benchmarks NAME ...`: the one entry point of all measurements."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = {"kernels": "benchmarks.kernels", "quality": "benchmarks.quality", "speed": "benchmarks.speed"}


def main() -> int:
    """Dispatch to the benchmark named first."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: python -m benchmarks {{{','.join(NAMES)}}} [options]", file=sys.stderr)
        return 2
    code: int = import_module(NAMES[sys.argv[1]]).main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())

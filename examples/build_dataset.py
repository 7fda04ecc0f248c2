"""Make a data set of long documents out of what every machine has: the standard library of the running Python.

    python examples/build_dataset.py FOLDER

Writes FOLDER/train.jsonl (one {"text": ...} row per module of TRAIN, each some 15,000 to 60,000 tokens) and
FOLDER/heldout.jsonl (the modules of HELD_OUT, which training never sees). The same Python gives the same bytes.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import tokenize
from pathlib import Path

TRAIN = (
    "_pydecimal.py",
    "argparse.py",
    "difflib.py",
    "doctest.py",
    "email/_header_value_parser.py",
    "enum.py",
    "inspect.py",
    "logging/__init__.py",
    "pickletools.py",
    "subprocess.py",
    "tarfile.py",
    "typing.py",
)
HELD_OUT = ("http/cookiejar.py", "mailbox.py")


def build(folder: Path) -> tuple[Path, Path]:
    """Write both files into `folder` and return their paths. Raises FileNotFoundError where a module has no source."""
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / "train.jsonl", TRAIN), _write(folder / "heldout.jsonl", HELD_OUT)


def _write(path: Path, modules: tuple[str, ...]) -> Path:
    library = Path(sysconfig.get_paths()["stdlib"])
    with path.open("w", encoding="utf-8") as file:
        for module in modules:
            with tokenize.open(library / module) as source:  # honours the module's encoding line
                file.write(json.dumps({"text": source.read()}) + "\n")
    return path


def main() -> None:
    """Build, and say what came out."""
    for path in build(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        lengths = [len(json.loads(line)["text"]) for line in path.open(encoding="utf-8")]
        print(f"{path}: {len(lengths)} documents, {min(lengths):,} to {max(lengths):,} characters each")


if __name__ == "__main__":
    main()

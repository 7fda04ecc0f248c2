"""`--option KEY=VALUE`: the `jenga` object of a job, from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError

SCHEDULING = ("priority", "gpus", "oom_policy")
"""Fields of the `jenga` object that say how a job is run; JengaConfig does not know them, the service does."""

Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the `jenga` object, e.g. selection.block_tokens=64."),
]


Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="An entry of the job's metadata; `jenga list` finds jobs by it."),
]


def options(pairs: Sequence[str]) -> dict[str, Any]:
    """`["max_steps=12", "selection.score=random"]` to a nested mapping. Values are JSON, or else plain strings."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        *parents, key = path.split(".")
        if not equals or not all([*parents, key]):
            raise ConfigError(
                f"--option {pair!r}: expected KEY=VALUE, e.g. keep_fraction=0.4 or selection.score=random"
            )
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--option {pair!r}: {parent!r} was given a value of its own before")
        try:
            node[key] = json.loads(text)
        except ValueError:
            node[key] = text
    return tree


def checked(pairs: Sequence[str]) -> dict[str, Any]:
    """The same, with a mistyped setting refused before any file travels. Raises ConfigError."""
    tree = options(pairs)
    JengaConfig.parse({name: value for name, value in tree.items() if name not in SCHEDULING})
    return tree


def metadata_of(pairs: Sequence[str] | None) -> dict[str, str]:
    """`["dataset=contracts"]` to a mapping. Raises ConfigError."""
    entries = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--metadata {pair!r}: expected KEY=VALUE, e.g. dataset=contracts")
        entries[key] = value
    return entries

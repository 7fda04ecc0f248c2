"""`--option KEY=VALUE` becomes the job's `jenga` object."""

from __future__ import annotations

import pytest

from cli.options import options
from jenga_core.errors import ConfigError


def test_values_are_json_or_else_strings_and_dots_nest() -> None:
    given = [
        "max_steps=12",
        "keep_fraction=0.4",
        "enabled=false",
        "selection.score=random",
        "selection.block_tokens=32",
    ]
    assert options(given) == {
        "max_steps": 12,
        "keep_fraction": 0.4,
        "enabled": False,
        "selection": {"score": "random", "block_tokens": 32},
    }


def test_only_the_first_equals_sign_splits() -> None:
    assert options(["a=b=c"]) == {"a": "b=c"}


@pytest.mark.parametrize("pair", ["keep_fraction", "=1", "selection.=1"])
def test_a_pair_without_key_or_value_is_named(pair: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        options([pair])


def test_a_path_through_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="given a value of its own"):
        options(["selection=1", "selection.score=random"])

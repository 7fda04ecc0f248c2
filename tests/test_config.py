"""JengaConfig: presets, the short form, round trips, and refusals that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from jenga_core.config import PRESETS, JengaConfig, LoraConfig, SelectionConfig
from jenga_core.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    config = JengaConfig.preset(name, max_steps=3, rope={"factor": 4})
    again = JengaConfig.model_validate(json.loads(config.model_dump_json()))
    assert again == config
    assert again.preset_name == name
    assert config.model_dump()["preset"] == name


def test_presets_differ_in_what_they_say() -> None:
    assert JengaConfig.preset("jenga").enabled
    assert not JengaConfig.preset("lora").enabled
    assert JengaConfig() == JengaConfig.preset("jenga")
    assert JengaConfig.preset("lora", enabled=True).enabled  # what the caller gives wins


@pytest.mark.parametrize(
    "given",
    [
        {"keep_fraction": 0.25},
        {"selection": {"keep_fraction": 0.25}},
        {"selection": SelectionConfig(keep_fraction=0.25)},
        {"keep_fraction": 0.25, "selection": {"keep_fraction": 0.25, "score": "auto"}},
        {"keep_fraction": 0.25, "selection": None},
    ],
)
def test_keep_fraction_has_a_short_form(given: dict[str, Any]) -> None:
    assert JengaConfig.preset("jenga", **given).selection.keep_fraction == 0.25


def test_the_short_form_leaves_the_rest_of_the_selection() -> None:
    config = JengaConfig.preset("jenga", keep_fraction=0.5, selection={"score": "random", "block_tokens": 8})
    assert config.selection == SelectionConfig(keep_fraction=0.5, score="random", block_tokens=8)


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"keep_fraction": 0}, "jenga.selection.keep_fraction", "greater than 0 (got 0)"),
        ({"keep_fraction": 1.5}, "jenga.selection.keep_fraction", "less than or equal to 1 (got 1.5)"),
        ({"keep_fraction": float("nan")}, "jenga.selection.keep_fraction", "finite"),
        ({"keep_fraction": 0.5, "selection": {"keep_fraction": 0.4}}, "jenga", "given twice"),
        ({"preset": "magic"}, "jenga", "preset must be one of 'jenga', 'jenga-paper', 'lora', 'longlora'; got 'magic'"),
        ({"preset": ["jenga"]}, "jenga", "preset must be one of"),
        ({"colour": "red"}, "jenga.colour", "no such setting; there are preset, enabled, "),
        ({"lora": {"rank": 3}}, "jenga.lora.rank", "there are r, alpha, dropout, target_modules (got 3)"),
        ({"kep_fraction": 1}, "jenga.kep_fraction", "did you mean jenga.selection.keep_fraction? (got 1)"),
        ({"target_fraction": 1}, "jenga.target_fraction", "did you mean jenga.selection.target_fraction?"),
        ({"selection": {"score": "psychic"}}, "jenga.selection.score", "(got 'psychic')"),
        ({"selection": 3}, "jenga.selection", "(got 3)"),
        ({"context_length_tokens": 8}, "jenga.context_length_tokens", "greater than or equal to 16"),
        ({"max_steps": 0}, "jenga.max_steps", "(got 0)"),
        ({"learning_rate": -1}, "jenga.learning_rate", "(got -1)"),
        ({"lora": {"r": 0}}, "jenga.lora.r", "(got 0)"),
        ({"lora": {"target_modules": []}}, "jenga.lora.target_modules", "at least 1"),
        ({"rope": {"factor": 1}}, "jenga.rope.factor", "greater than 1"),
        (
            {"selection": {"scope": "per_layer", "below_entry": "forward_only"}},
            "jenga.selection",
            "below_entry='forward_only' needs one set for all layers",
        ),
    ],
)
def test_a_refusal_names_the_field(given: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        JengaConfig.parse(given)
    assert refused.value.param == param
    assert words in refused.value.message
    assert refused.value.message.startswith(param)
    assert (refused.value.status, refused.value.code) == (400, "invalid_config")


def test_a_config_cannot_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        JengaConfig().lora.r = 4  # type: ignore[misc]
    assert hash(LoraConfig()) == hash(LoraConfig())


def test_every_field_is_documented() -> None:
    schemas = JengaConfig.model_json_schema()
    for part in (schemas, *schemas["$defs"].values()):
        for name, field in part["properties"].items():
            assert field.get("description") or "$ref" in field, f"{part['title']}.{name}"

"""The form of a new job's settings, made from JengaConfig itself: every field, its choices, and its docstring as help.

A setting that is added to the config appears on the page, with nothing to do here. An input that is left empty is not
sent, so that presets keep their meaning; `defaults` tells the page what a preset would then use.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jenga_core.config import PRESETS, JengaConfig

PROMOTED = ("selection.keep_fraction", "context_length_tokens", "max_steps", "learning_rate", "lora.r")
"""Settings that most jobs choose; the page has inputs of its own for them."""

_NOT_ASKED = ("preset_name",)


@dataclass(frozen=True)
class Setting:
    """One input."""

    path: str
    """Dotted, as in the `jenga` object: `selection.score`."""

    choices: tuple[str, ...]
    """Values as JSON texts; empty where any text may be given."""

    help: str


@dataclass(frozen=True)
class Section:
    """The settings of one part of the config."""

    name: str
    help: str
    settings: tuple[Setting, ...]


def sections() -> list[Section]:
    """The general settings, then one section for each part."""
    general: list[Setting] = []
    parts: list[Section] = []
    for name, field in JengaConfig.model_fields.items():
        part = _part(field)
        if part is not None:
            settings = tuple(_settings(part, prefix=f"{name}."))
            parts.append(Section(name, _plain(field.description), settings))
        elif name not in _NOT_ASKED:
            general.append(_setting(name, field))
    return [Section("general", "", tuple(each for each in general if each.path not in PROMOTED)), *parts]


def help_of(path: str) -> str:
    """The docstring of the field at this path."""
    model: type[BaseModel] = JengaConfig
    *parents, last = path.split(".")
    for parent in parents:
        part = _part(model.model_fields[parent])
        assert part is not None, path
        model = part
    return _plain(model.model_fields[last].description)


def defaults() -> dict[str, dict[str, Any]]:
    """Every preset's own values."""
    return {name: JengaConfig.preset(name).model_dump(mode="json") for name in PRESETS}


def _settings(part: type[BaseModel], *, prefix: str) -> Iterator[Setting]:
    for name, field in part.model_fields.items():
        if prefix + name not in PROMOTED:
            yield _setting(prefix + name, field)


def _setting(path: str, field: FieldInfo) -> Setting:
    kinds = _members(field.annotation)
    choices: list[str] = []
    if bool in kinds:
        choices = ["true", "false"]
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices += [str(value) for value in get_args(kind)]
    return Setting(path, tuple(choices), _plain(field.description))


def _part(field: FieldInfo) -> type[BaseModel] | None:
    for kind in _members(field.annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _plain(description: str | None) -> str:
    """A docstring as one line of prose, without its backticks."""
    return re.sub(r"\s+", " ", (description or "").replace("`", "")).strip()

"""`--data-dir`, the one option that every subcommand takes, and the settings it leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from jenga_core.errors import ConfigError
from jenga_core.service.settings import Settings

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Folder of everything Jenga keeps. Default: $JENGA_DATA_DIR, else ~/.local/share/jenga.",
        show_default=False,
    ),
]


def settings_of(data_dir: Path | None) -> Settings:
    """The process settings. The option wins over JENGA_DATA_DIR, that over the default; the path becomes absolute.

    Raises ConfigError for a variable with a value that cannot be.
    """
    try:
        settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"JENGA_{str(first['loc'][0]).upper()}: {first['msg']} (got {first['input']!r})") from error
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})

"""`--data-dir`, the one option that every subcommand takes, and the settings it leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    """The process settings. The option wins over JENGA_DATA_DIR, that over the default; the path becomes absolute."""
    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})

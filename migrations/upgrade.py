"""Bring the database to the newest schema. Safe to call from any number of processes at once (see migrations/env.py).

    upgrade(Settings())

The revisions lie beside this file, so it works from a checkout and from an installed wheel and needs no alembic.ini.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from jenga_core.service.settings import Settings


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Run the missing revisions up to `revision`, in one transaction: all of them or none."""
    command.upgrade(alembic_config(settings.database), revision)


def alembic_config(url: str) -> Config:
    """What Alembic's commands need to work on the database at this SQLAlchemy URL."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["database_url"] = url
    return config

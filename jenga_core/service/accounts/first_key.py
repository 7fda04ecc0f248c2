"""The first API key of an installation: made once, kept in DATA_DIR/admin.key (mode 600)."""

from __future__ import annotations

from jenga_core.errors import ConfigError
from jenga_core.service.accounts import keys, teams
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings, write_private


def ensure_first_key(settings: Settings) -> None:
    """Make the team `default` and its key unless the file is there.

    A key that was revoked or has expired since is left alone. Raises ConfigError when the database does not know it:
    another database, or another pepper.
    """
    path, database = settings.admin_key_file, Database(settings.database)
    try:
        if not path.exists():
            with database.writing() as session:
                team = teams.get_or_create_team(session, "default")
                key = keys.create_key(session, team, "admin", pepper=settings.pepper)
            write_private(path, key)
        with database.reading() as session:
            known = keys.is_known(session, path.read_text().strip(), pepper=settings.pepper)
        if not known:
            raise ConfigError(
                f"the key in {path} is not known to this database: the data folder belongs to another one, or "
                "JENGA_SECRET_KEY has changed; set JENGA_DATABASE_URL and JENGA_SECRET_KEY as they were, or take "
                "another data folder"
            )
    finally:
        database.dispose()

"""The first API key of an installation: made once, kept in DATA_DIR/admin.key (mode 600)."""

from __future__ import annotations

from jenga_core.errors import AuthenticationError, ConfigError
from jenga_core.service.accounts import keys, teams
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings, write_private


def ensure_first_key(settings: Settings) -> None:
    """Make the team `default` and its key unless the file is there.

    Raises ConfigError when the file is there but its key opens nothing: another database, or another pepper.
    """
    path, database = settings.admin_key_file, Database(settings.database)
    try:
        if not path.exists():
            with database.writing() as session:
                team = teams.get_or_create_team(session, "default")
                key = keys.create_key(session, team, "admin", pepper=settings.pepper)
            write_private(path, key)
        with database.reading() as session:
            keys.authenticate(session, path.read_text().strip(), pepper=settings.pepper)
    except AuthenticationError as error:
        raise ConfigError(
            f"the key in {path} is not known to this database; remove the file to get a new key, "
            "or set JENGA_DATABASE_URL and JENGA_SECRET_KEY as they were when it was made"
        ) from error
    finally:
        database.dispose()

"""What Alembic runs for every command: one transaction, guarded so that any number of processes may migrate at once.

The lock is the database's own and ends with the transaction. SQLite: BEGIN IMMEDIATE, which admits one writer.
PostgreSQL: an advisory lock. Whoever waited finds the database at head and does nothing.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import event, text

from jenga_core.service.db import models
from jenga_core.service.db.session import Database
from jenga_core.service.settings import Settings

ADVISORY_LOCK = 0x6A656E6761  # "jenga" in ASCII


def migrate(url: str) -> None:
    """Run the revisions that this command asks for, on the database at `url`."""
    database = Database(url)
    sqlite = database.engine.dialect.name == "sqlite"
    if sqlite:
        event.listen(database.engine, "connect", _foreign_keys_off)
    try:
        with database.writing() as session:
            if not sqlite:
                session.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            context.configure(
                connection=session.connection(),
                target_metadata=models.Job.metadata,
                render_as_batch=True,  # SQLite cannot alter a table in place; Alembic copies it
            )
            context.run_migrations()
            if sqlite and (broken := session.execute(text("PRAGMA foreign_key_check")).all()):
                raise CommandError(
                    f"the migration left rows that point nowhere (table, row, parent, key): {broken[:5]}"
                )
    finally:
        database.dispose()


def _foreign_keys_off(dbapi_connection: Any, _record: Any) -> None:
    """Copying a table drops the old one, which must not cascade; the setting is ignored inside a transaction."""
    dbapi_connection.execute("PRAGMA foreign_keys=OFF")


if context.is_offline_mode():
    raise CommandError("SQL scripts (--sql) are not supported: run `alembic upgrade head` against the database")

migrate(context.config.attributes.get("database_url") or Settings().database)

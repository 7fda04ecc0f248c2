"""The database's history, one Alembic revision per file. Ships in the wheel, for `jenga_core.service.db.migrate`."""

"""The database's history, one Alembic revision per file. `upgrade.upgrade(settings)` runs what is missing."""

"""Removes what has expired: files, uploads that were never completed, old webhook deliveries.

Called now and then by the ops worker.

Rows first, bytes after the commit: a crash between the two leaves bytes that no row names, never a row without bytes.
"""

from __future__ import annotations

from jenga_core.service.db.session import Database
from jenga_core.service.files import repository, uploads
from jenga_core.service.files.store import FileStore
from jenga_core.service.webhooks import outbox

ABANDONED_SECONDS = 86400.0
"""A file that is being written and to which nothing was added for so long has no writer any more."""

AT_ONCE = 100
"""Objects per call: the next call goes on, and other writers get their turn between."""


def sweep(database: Database, store: FileStore) -> int:
    """Remove some of what has expired; return how many stored objects went."""
    with database.writing() as session:
        gone = repository.remove_expired(session, limit=AT_ONCE) + uploads.expire(session, limit=AT_ONCE)
        outbox.forget(session)
    for stored_id in gone:
        store.delete(stored_id)
    store.forget_partials(older_than_seconds=ABANDONED_SECONDS)
    return len(gone)

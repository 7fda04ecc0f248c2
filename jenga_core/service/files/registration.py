"""From bytes in the store to a file of a team: rows checked, quota checked, row inserted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from jenga_core.errors import DataError
from jenga_core.service import audit
from jenga_core.service.accounts import quotas, teams
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import StoredFile
from jenga_core.service.db.session import Database
from jenga_core.service.files.check import count_rows
from jenga_core.service.files.store import FileStore


@dataclass(frozen=True)
class NewFile:
    """What the caller said of a file whose bytes lie in the store."""

    id: str
    filename: str
    bytes: int
    purpose: str
    expires_after_seconds: int | None = None


def register(
    database: Database,
    store: FileStore,
    principal: Principal,
    new: NewFile,
    *,
    before: Callable[[Session], int] = lambda _session: 0,
) -> StoredFile:
    """Check the rows and insert the file's row; a wrong row makes a file with status `error`.

    `before` runs first in the transaction and returns how many stored bytes it lets go of. Raises QuotaExceeded, and
    whatever `before` raises; the bytes are deleted then.
    """
    try:
        rows, problem = None, None
        try:
            rows = count_rows(store.path(new.id))
        except DataError as error:
            problem = error.message.replace("\0", "\N{SYMBOL FOR NULL}")
        with database.writing() as session:
            team = teams.get(session, principal.team_id, lock=True)
            let_go_bytes = before(session)
            quotas.check_storage(session, team, new.bytes - let_go_bytes)
            lifetime = new.expires_after_seconds
            file = StoredFile(
                id=new.id,
                team_id=team.id,
                purpose=new.purpose,
                filename=new.filename,
                bytes=new.bytes,
                rows=rows,
                status="error" if problem else "processed",
                status_details=problem,
                created_at=database_now(),
                expires_at=None if lifetime is None else database_now() + lifetime,
            )
            session.add(file)
            audit.record(session, principal, "file.create", new.id, filename=new.filename, bytes=new.bytes)
            session.flush()
            session.refresh(file)
            return file
    except BaseException:
        store.delete(new.id)
        raise

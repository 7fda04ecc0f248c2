"""What a route asks for: the principal, the database, the file store.

`create_app` puts the others on `app.state`, the gate puts the principal on `request.state`. Transactions are opened in
the routes themselves, so that they have committed before the answer leaves.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from jenga_core.errors import AuthenticationError
from jenga_core.service.accounts.keys import Principal
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore


def _principal(request: Request) -> Principal:
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:  # a route outside the gate: refuse rather than serve everybody
        raise AuthenticationError("This address needs an API key")
    return principal


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _files(request: Request) -> FileStore:
    files: FileStore = request.app.state.files
    return files


CurrentPrincipal = Annotated[Principal, Depends(_principal)]
CurrentDatabase = Annotated[Database, Depends(_database)]
CurrentFiles = Annotated[FileStore, Depends(_files)]

After = Annotated[str | None, Query(max_length=200, description="Id of the last object of the page before")]
"""Cursor of a list."""

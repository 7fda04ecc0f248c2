"""What a route asks for: the principal, the database, the file store.

`create_app` puts the others on `app.state`, the gate puts the principal on `request.state`. Transactions are opened in
the routes themselves, so that they have committed before the answer leaves.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from api.auth import require
from jenga_core.errors import AuthenticationError
from jenga_core.service.accounts.keys import Principal, Scope
from jenga_core.service.db.session import Database
from jenga_core.service.files.store import FileStore
from jenga_core.service.settings import Settings


def _principal(request: Request) -> Principal:
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:  # a route outside the gate: refuse rather than serve everybody
        raise AuthenticationError("This address needs an API key")
    return principal


def _admin(request: Request) -> Principal:
    principal = _principal(request)
    require(principal, Scope.ADMIN)
    return principal


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _files(request: Request) -> FileStore:
    files: FileStore = request.app.state.files
    return files


CurrentPrincipal = Annotated[Principal, Depends(_principal)]
CurrentAdmin = Annotated[Principal, Depends(_admin)]
"""The principal, which runs the installation."""

CurrentSettings = Annotated[Settings, Depends(_settings)]
CurrentDatabase = Annotated[Database, Depends(_database)]
CurrentFiles = Annotated[FileStore, Depends(_files)]

After = Annotated[str | None, Query(max_length=200, description="Id of the last object of the page before")]
"""Cursor of a list."""

Limit = Annotated[int, Query(ge=1, le=1000, description="Objects in a page")]

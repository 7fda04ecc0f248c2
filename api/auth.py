"""Who is asking: an API key, as a Bearer header or in the browser's cookie, becomes a Principal.

A browser sends the cookie by itself, also when another site's page makes it do so. SameSite=Strict stops most of that;
a request that changes something must also say that it comes from our own origin.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from sqlalchemy.exc import OperationalError
from starlette.requests import HTTPConnection

from api.errors import Forbidden
from jenga_core.errors import AuthenticationError
from jenga_core.service.accounts import keys
from jenga_core.service.accounts.keys import Principal, Scope
from jenga_core.service.db.session import Database

log = logging.getLogger(__name__)

COOKIE = "jenga_key"
_READING = ("GET", "HEAD", "OPTIONS")
_READING_POSTS = ("/v1/fine_tuning/estimates",)
"""They answer a question that is too long for an address."""


def principal_of(connection: HTTPConnection, database: Database, pepper: bytes) -> Principal:
    """The principal behind a request's key. The body is not looked at.

    Raises AuthenticationError without a valid key, Forbidden for a change that another site's page asked for.
    """
    authorization = connection.headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise AuthenticationError("The Authorization header must read: Bearer YOUR_KEY")
    elif COOKIE in connection.cookies:
        key = connection.cookies[COOKIE]
    else:
        raise AuthenticationError("No API key provided. Send it in a header: Authorization: Bearer YOUR_KEY")
    with database.reading() as session:
        principal = keys.authenticate(session, key.strip(), pepper=pepper)
    if authorization is None and connection.scope["method"] not in _READING and not _same_origin(connection):
        raise Forbidden("A browser may change things from Jenga's own pages only", code="cross_site_request")
    if not principal.noted:
        _note_use(database, principal.key_id)
    return replace(principal, request_id=connection.scope.get("state", {}).get("request_id", ""))


def _note_use(database: Database, key_id: str) -> None:
    """Write down that the key is in use; should somebody hold the database for long, a later request does it."""
    try:
        with database.writing() as session:
            keys.touch(session, key_id)
    except OperationalError as error:
        log.warning("use of key %s is not noted: %s", key_id, error.orig)


def check_scope(principal: Principal, connection: HTTPConnection, path: str) -> None:
    """Raise Forbidden unless the key may make this kind of request: reading needs `read`, all else `write`.

    Routes that run the installation ask for `admin` themselves (dependencies.CurrentAdmin).
    """
    reads = connection.scope["method"] in _READING or path in _READING_POSTS
    require(principal, Scope.READ if reads else Scope.WRITE)


def require(principal: Principal, scope: Scope) -> None:
    """Raise Forbidden unless the key has the scope."""
    if not principal.may(scope):
        raise Forbidden(
            f"This needs a key with the scope {scope.value!r}; the key {principal.key_name!r} has "
            f"{', '.join(own.value for own in principal.scopes) or 'none'}"
        )


def _same_origin(connection: HTTPConnection) -> bool:
    site, host = connection.headers.get("sec-fetch-site"), connection.headers.get("host")
    if site is not None:
        return site == "same-origin"
    return bool(host) and connection.headers.get("origin", "").partition("://")[2] == host

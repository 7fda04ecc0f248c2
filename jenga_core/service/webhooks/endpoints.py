"""The addresses of a team, and the secret of each.

A secret is HMAC-SHA256(pepper, "webhook:" + id), so nothing that signs lies in the database. Rotating it means a new
endpoint.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jenga_core.errors import ConfigError, NotFoundError
from jenga_core.service import pagination
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import WebhookEndpoint
from jenga_core.service.ids import new_id
from jenga_core.service.pagination import Page

MAX_ENDPOINTS = 20
"""Of one team."""


def create(session: Session, team_id: str, url: str, events: Sequence[str]) -> WebhookEndpoint:
    """A new endpoint; the address was checked (targets.py). Raises ConfigError when the team has too many."""
    of_team = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.team_id == team_id)
    if session.scalars(of_team).one() >= MAX_ENDPOINTS:
        raise ConfigError(f"The team has {MAX_ENDPOINTS} webhooks already; delete one", code="too_many_webhooks")
    endpoint = WebhookEndpoint(
        id=new_id("we_"), team_id=team_id, url=url, events=list(events), created_at=database_now()
    )
    session.add(endpoint)
    session.flush()
    session.refresh(endpoint)
    return endpoint


def get(session: Session, team_id: str, endpoint_id: str) -> WebhookEndpoint:
    """The team's endpoint. Raises NotFoundError."""
    own = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.team_id == team_id)
    endpoint = session.scalars(own).one_or_none()
    if endpoint is None:
        raise NotFoundError(f"No such webhook: {endpoint_id!r}. Webhooks of this key: GET /v1/webhooks")
    return endpoint


def page(session: Session, team_id: str, *, after: str | None, limit: int) -> Page[WebhookEndpoint]:
    """The team's endpoints, newest first. Raises CursorError."""
    statement = select(WebhookEndpoint).where(WebhookEndpoint.team_id == team_id)
    return pagination.by_age(session, statement, WebhookEndpoint, after=after, limit=limit)


def secret_of(endpoint_id: str, pepper: bytes) -> str:
    """What the receiver checks signatures with: `whsec_` and base64, as Standard Webhooks wants it."""
    digest = hmac.new(pepper, f"webhook:{endpoint_id}".encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(digest).decode()

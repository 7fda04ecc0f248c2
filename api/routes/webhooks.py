"""Webhooks: where a team wants to hear that a job has started, paused or ended."""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import After, CurrentDatabase, CurrentPrincipal, CurrentSettings, Limit
from api.schemas.lists import ListOf
from api.schemas.webhooks import CreateWebhook, NewWebhookObject, WebhookDeleted, WebhookObject
from jenga_core.service import audit
from jenga_core.service.accounts import teams
from jenga_core.service.webhooks import endpoints, targets

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.post("")
def create_webhook(
    body: CreateWebhook, principal: CurrentPrincipal, database: CurrentDatabase, settings: CurrentSettings
) -> NewWebhookObject:
    """Add an address. The answer is the only place where the secret of its signatures is shown.

    Deliveries follow Standard Webhooks, which `client.webhooks.unwrap` of OpenAI's client checks.
    """
    target = targets.resolve(body.url, private_allowed=settings.webhooks_to_private_addresses)
    with database.writing() as session:
        teams.get(session, principal.team_id, lock=True)
        endpoint = endpoints.create(session, principal.team_id, body.url, body.events)
        audit.record(session, principal, "webhook.create", endpoint.id, host=target.host)  # the rest may be secret
        return NewWebhookObject.of(endpoint, secret=endpoints.secret_of(endpoint.id, settings.pepper))


@router.get("")
def list_webhooks(
    principal: CurrentPrincipal, database: CurrentDatabase, after: After = None, limit: Limit = 20
) -> ListOf[WebhookObject]:
    """The team's addresses, newest first."""
    with database.reading() as session:
        page = endpoints.page(session, principal.team_id, after=after, limit=limit)
        return ListOf[WebhookObject].of(page, WebhookObject.of)


@router.get("/{webhook_id}")
def retrieve_webhook(webhook_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> WebhookObject:
    """One address."""
    with database.reading() as session:
        return WebhookObject.of(endpoints.get(session, principal.team_id, webhook_id))


@router.delete("/{webhook_id}")
def delete_webhook(webhook_id: str, principal: CurrentPrincipal, database: CurrentDatabase) -> WebhookDeleted:
    """Remove an address. What it has not been told yet is told to nobody."""
    with database.writing() as session:
        session.delete(endpoints.get(session, principal.team_id, webhook_id))
        audit.record(session, principal, "webhook.delete", webhook_id)
    return WebhookDeleted(id=webhook_id)

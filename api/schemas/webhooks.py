"""Webhooks: ours, in objects and lists like OpenAI's. What is delivered are OpenAI's events, signed as its client
checks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from api.schemas.bodies import Answer, Request
from api.schemas.lists import Text
from jenga_core.service.db.models import WebhookEndpoint
from jenga_core.service.webhooks.outbox import EVENT_TYPES
from jenga_core.service.webhooks.targets import MAX_URL_CHARACTERS

EventType = Literal[
    "fine_tuning.job.running",
    "fine_tuning.job.paused",
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
]


def _distinct(events: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(events))


class CreateWebhook(Request):
    """The body of `POST /v1/webhooks`."""

    url: Annotated[Text, Field(min_length=1, max_length=MAX_URL_CHARACTERS)]
    """https, and public unless the installation allows others."""

    events: Annotated[list[EventType], Field(min_length=1, max_length=len(EVENT_TYPES)), AfterValidator(_distinct)] = [
        "fine_tuning.job.succeeded",
        "fine_tuning.job.failed",
        "fine_tuning.job.cancelled",
    ]


class WebhookObject(Answer):
    """An address that hears of the team's jobs."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    url: str
    events: list[str]

    @classmethod
    def of(cls, endpoint: WebhookEndpoint, **more: Any) -> Self:
        """The public form of a row."""
        return cls(
            id=endpoint.id, created_at=int(endpoint.created_at), url=endpoint.url, events=endpoint.events, **more
        )


class NewWebhookObject(WebhookObject):
    """A webhook that was just made."""

    secret: str
    """What its deliveries are signed with, shown this once."""


class WebhookDeleted(Answer):
    """The answer to DELETE."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    deleted: Literal[True] = True

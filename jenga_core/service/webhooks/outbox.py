"""What webhooks have to tell, written in the transaction of the change itself: either both are there, or neither.

One statement per change of a job's state adds a row for every endpoint of the team that wants to hear of it. A crash
after the commit loses nothing, since delivery.py reads these rows; a rolled-back change tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import Job, WebhookDelivery, WebhookEndpoint
from jenga_core.service.ids import new_id
from jenga_core.service.jobs.state import JobState

EVENT_OF_STATE: Mapping[JobState, str] = {
    JobState.RUNNING: "fine_tuning.job.running",
    JobState.PAUSED: "fine_tuning.job.paused",
    JobState.SUCCEEDED: "fine_tuning.job.succeeded",
    JobState.FAILED: "fine_tuning.job.failed",
    JobState.CANCELLED: "fine_tuning.job.cancelled",
}
"""The last three are OpenAI's."""

EVENT_TYPES = tuple(EVENT_OF_STATE.values())
KEEP_SECONDS = 30 * 86400.0
"""How long a delivery that was made, or given up, can be looked up."""


def note(session: Session, job_id: str, state: JobState) -> None:
    """The job has come into this state: tell every endpoint that wants to know."""
    type = EVENT_OF_STATE.get(state)
    if type is None:
        return
    endpoints = select(WebhookEndpoint).join(Job, Job.team_id == WebhookEndpoint.team_id).where(Job.id == job_id)
    wanting = [endpoint for endpoint in session.scalars(endpoints) if type in endpoint.events]
    if not wanting:
        return
    now = session.scalars(select(database_now())).one()
    event_id = new_id("evt_")
    payload = {"id": event_id, "object": "event", "created_at": int(now), "type": type, "data": {"id": job_id}}
    for endpoint in wanting:
        session.add(
            WebhookDelivery(
                event_id=event_id,
                endpoint_id=endpoint.id,
                job_id=job_id,
                payload=payload,
                next_attempt_at=now,
                created_at=now,
            )
        )
    session.flush()


def forget(session: Session) -> None:
    """Remove deliveries that are over, after KEEP_SECONDS."""
    old = WebhookDelivery.created_at < database_now() - KEEP_SECONDS
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.next_attempt_at.is_(None), old))

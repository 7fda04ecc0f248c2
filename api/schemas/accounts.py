"""Teams, their keys and quotas, and the audit log: ours alone, in objects and lists like OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from api.schemas.bodies import Answer, Request
from api.schemas.lists import Text
from jenga_core.service.accounts.keys import EVERY_SCOPE, Principal, Scope
from jenga_core.service.accounts.quotas import Usage
from jenga_core.service.db.models import ApiKey, AuditEntry, Team

Name = Annotated[Text, Field(min_length=1, max_length=64)]
Count = Annotated[int, Field(ge=0, lt=2**31)]


def _distinct(scopes: list[Scope]) -> list[Scope]:
    return [scope for scope in EVERY_SCOPE if scope in scopes]


class CreateKey(Request):
    """The body of `POST /v1/keys`."""

    name: Name
    """For people: whom or what the key is for."""

    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3), AfterValidator(_distinct)] = [
        Scope.READ,
        Scope.WRITE,
    ]
    expires_at: Annotated[int, Field(ge=0, lt=2**40)] | None = None
    """Seconds since 1970; null: never."""

    team_id: Text | None = None
    """Whose key it is; the caller's own team when left out."""


class KeyObject(Answer):
    """A key, without its secret."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    team_id: str
    scopes: list[Scope]
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    """To within five minutes."""

    revoked_at: int | None

    @classmethod
    def of(cls, key: ApiKey, **more: Any) -> Self:
        """The public form of a row."""
        return cls(
            id=key.id,
            name=key.name,
            team_id=key.team_id,
            scopes=[Scope(scope) for scope in key.scopes],
            created_at=int(key.created_at),
            expires_at=_seconds(key.expires_at),
            last_used_at=_seconds(key.last_used_at),
            revoked_at=_seconds(key.revoked_at),
            **more,
        )


class NewKeyObject(KeyObject):
    """A key that was just made."""

    secret: str
    """The key itself, shown this once."""


class Quotas(Request):
    """What a team may use; null does not limit."""

    storage_bytes: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    """Of files and unfinished uploads."""

    queued_jobs: Count | None = None
    """Jobs that wait, queued or paused."""

    running_jobs: Count | None = None
    """Jobs at the same time; more may be queued."""

    gpu_hours: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """In the last 30 days."""

    @classmethod
    def of(cls, team: Team) -> Self:
        """From a team's row."""
        return cls(
            storage_bytes=team.max_storage_bytes,
            queued_jobs=team.max_queued_jobs,
            running_jobs=team.max_running_jobs,
            gpu_hours=team.max_gpu_hours,
        )


class Used(Answer):
    """What a team uses now, in the units of its quotas."""

    storage_bytes: int
    queued_jobs: int
    running_jobs: int
    gpu_hours: float


class QuotasAndUse(Quotas):
    """What a team may use, and what it uses."""

    used: Used

    @classmethod
    def with_use(cls, team: Team, usage: Usage) -> Self:
        """From a team's row, and what was counted."""
        return cls(**Quotas.of(team).model_dump(), used=Used(**vars(usage)))


class CreateTeam(Request):
    """The body of `POST /v1/teams`."""

    name: Name
    quotas: Quotas = Quotas()


class UpdateTeam(Request):
    """The body of `POST /v1/teams/{team_id}`."""

    quotas: Quotas
    """All four: one that is left out no longer limits."""


class TeamObject(Answer):
    """A team, which is OpenAI's organization."""

    id: str
    object: Literal["team"] = "team"
    name: str
    created_at: int
    quotas: QuotasAndUse

    @classmethod
    def of(cls, team: Team, usage: Usage) -> Self:
        """The public form of a row."""
        return cls(
            id=team.id, name=team.name, created_at=int(team.created_at), quotas=QuotasAndUse.with_use(team, usage)
        )


class TeamName(Answer):
    """Which team."""

    id: str
    name: str


class KeyName(Answer):
    """Which key."""

    id: str
    name: str
    scopes: list[Scope]


class Me(Answer):
    """Who the caller is, and what its team may use."""

    object: Literal["me"] = "me"
    team: TeamName
    key: KeyName
    quotas: QuotasAndUse

    @classmethod
    def of(cls, principal: Principal, team: Team, usage: Usage) -> Self:
        """For this caller."""
        return cls(
            team=TeamName(id=team.id, name=team.name),
            key=KeyName(id=principal.key_id, name=principal.key_name, scopes=list(principal.scopes)),
            quotas=QuotasAndUse.with_use(team, usage),
        )


class AuditObject(Answer):
    """One change that somebody made."""

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    created_at: int
    team_id: str
    key_id: str
    action: str
    """What was done to what kind of object, e.g. `job.create`."""

    object_id: str
    request_id: str
    """The answer's `x-request-id`."""

    details: dict[str, Any] | None

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        """The public form of a row."""
        return cls(
            id=entry.id,
            created_at=int(entry.created_at),
            team_id=entry.team_id,
            key_id=entry.key_id,
            action=entry.action,
            object_id=entry.object_id,
            request_id=entry.request_id,
            details=entry.details,
        )


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)

"""The request for a fine-tuning job: OpenAI's, with one extra object, `jenga`."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, ValidationError

from api.schemas.bodies import Request
from api.schemas.lists import Text
from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError
from jenga_core.service.jobs.spec import JobRequest


def _auto_or(kind: type[int] | type[float], low: float, high: float) -> PlainValidator:
    """A number, or "auto": one message, where a union would give one for each of its members."""

    def check(value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if value != "auto" and not (number and kind(value) == value):
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"'auto' or {what} from {low:g} to {high:g} was expected, got {value!r}")
        return value if value == "auto" else kind(value)

    return PlainValidator(check, json_schema_input_type=Literal["auto"] | kind)


def _sendable(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse half surrogate pairs anywhere inside, with a ValueError: no answer could repeat them."""
    json.dumps(value, ensure_ascii=False).encode()
    return value


_NAMEABLE = re.compile(r"(?!\.+$)[A-Za-z0-9._-]+")


def _nameable(suffix: str) -> str:
    """Refuse what would not do in the name of a model, with a ValueError."""
    if not _NAMEABLE.fullmatch(suffix):
        raise ValueError(
            f"letters from a to z, digits, '-', '_' and '.' are allowed, and not dots alone; got {suffix!r}"
        )
    return suffix


class HyperparametersRequest(Request):
    """OpenAI's three, each "auto" or a number."""

    n_epochs: Annotated[Literal["auto"] | int, _auto_or(int, 1, 50)] = "auto"
    batch_size: Annotated[Literal["auto"] | int, _auto_or(int, 1, 256)] = "auto"
    learning_rate_multiplier: Annotated[Literal["auto"] | float, _auto_or(float, 1e-6, 1e6)] = "auto"


class SupervisedRequest(Request):
    """The one method there is."""

    hyperparameters: HyperparametersRequest | None = None


class MethodRequest(Request):
    """How to fine-tune."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedRequest | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class Scheduling(Request):
    """The fields of a job's `jenga` object that say how it is run and not what it computes."""

    priority: Annotated[int, Field(ge=-1, le=1)] = 0
    """1 goes before 0, which goes before -1."""

    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    """Whole devices of one host."""

    oom_policy: Literal["fail", "shrink"] = "fail"
    """When memory runs out: fail, or start once more with less."""

    @classmethod
    def split(cls, jenga: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The scheduling, and what is left for JengaConfig. Raises ConfigError."""
        own = {name: value for name, value in jenga.items() if name in cls.model_fields}
        try:
            scheduling = cls.model_validate(own)
        except ValidationError as error:
            first = error.errors()[0]
            where = f"jenga.{first['loc'][0]}"
            raise ConfigError(f"{where}: {first['msg']} (got {first['input']!r})", param=where) from error
        return scheduling, {name: value for name, value in jenga.items() if name not in own}


class CreateJob(Request):
    """The body of `POST /v1/fine_tuning/jobs`."""

    model: Text
    training_file: Text
    validation_file: Text | None = None
    method: MethodRequest | None = None
    hyperparameters: HyperparametersRequest | None = None
    suffix: (
        Annotated[
            Text,
            Field(min_length=1, max_length=64, json_schema_extra={"pattern": f"^{_NAMEABLE.pattern}$"}),
            AfterValidator(_nameable),
        ]
        | None
    ) = None
    """Goes into the name of the model that the job makes."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: list[Any] | None = None
    jenga: Annotated[dict[str, Any], AfterValidator(_sendable)] | None = None
    """JengaConfig's fields (jenga_core/config.py), and those of Scheduling."""

    def to_request(self) -> JobRequest:
        """The request as the service's half sees it. Raises ConfigError for what Jenga cannot do."""
        if self.integrations:
            raise ConfigError(
                "integrations are not supported; leave them out and read GET .../metrics",
                code="unsupported_integrations",
                param="integrations",
            )
        method = self.method
        if method is not None and (method.type != "supervised" or method.dpo or method.reinforcement):
            raise ConfigError(
                f"method {method.type!r} is not supported; the one there is, is 'supervised'",
                code="unsupported_method",
                param="method.type",
            )
        scheduling, jenga = Scheduling.split(self.jenga or {})
        in_method = method.supervised.hyperparameters if method and method.supervised else None
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            config=JengaConfig.parse(jenga, param="jenga"),
            hyperparameters=self.hyperparameters.model_dump() if self.hyperparameters else None,
            method_hyperparameters=in_method.model_dump() if in_method else None,
            suffix=self.suffix,
            seed=self.seed,
            metadata=self.metadata,
            priority=scheduling.priority,
            gpus=scheduling.gpus,
            oom_policy=scheduling.oom_policy,
        )

"""Requests that nobody would write, made from the description: no 500, and every answer is as described.

The quick run sends a few to every operation. The slow one walks through operations in sequence, each using what the
ones before answered: create, then retrieve, cancel, delete, and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.schemas import BaseSchema

from api.app import create_app
from api.routes import events
from jenga_core.service.accounts.keys import create_key
from jenga_core.service.db.models import Team
from jenga_core.service.db.session import Database
from jenga_core.service.jobs import queue
from jenga_core.service.settings import Settings
from tests.support import database as databases
from tests.support.jobs import seed

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
)
SEEDS = 20
OFF = {"enabled": False}
CONFIG = {
    "generation": {"max-examples": 100},
    "checks": {**OFF, **{name: {"enabled": True} for name in CHECKS}},
    "phases": {"examples": OFF, "coverage": OFF, "fuzzing": OFF, "stateful": {"enabled": True}},
}
FEW = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def describe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], BaseSchema]]:
    """The description, by seed, of an API on SQLite with a team, a model and a file; every request carries a key."""
    folder = tmp_path_factory.mktemp("fuzzed")
    with pytest.MonkeyPatch.context() as patch, databases.migrated("sqlite", folder) as url:
        patch.setattr(queue, "ring", lambda _job_id: True)
        patch.setattr(events, "STREAM_SECONDS", 0.01)  # a stream ends with its job, and these have nobody to end them
        own = Settings(data_dir=folder, database_url=url, broker_url="memory://", requests_per_minute=0)
        database = Database(url)
        seeded = seed(database, own)
        with database.writing() as session:
            key = create_key(session, session.get_one(Team, seeded.team_id), "fuzz", pepper=own.pepper)
        app, headers = create_app(own), {"Authorization": f"Bearer {key}"}

        def described(seed: int) -> BaseSchema:
            config = SchemathesisConfig.from_dict({**CONFIG, "seed": seed, "headers": headers})
            return schemathesis.openapi.from_asgi("/openapi.json", app, config=config)

        yield described
        app.state.database.dispose()
        database.dispose()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_every_operation_stands_what_it_is_sent(
    describe: Callable[[int], BaseSchema], mode: GenerationMode, subtests: pytest.Subtests
) -> None:
    sent, nothing_to_send = 0, 0
    for found in describe(1).get_all_operations():
        operation = found.ok()

        @FEW
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            case.call_and_validate()

        with subtests.test(operation=operation.label):
            try:
                send()
                sent += 1
            except Unsatisfiable:  # any string will do there, so nothing is wrong by its shape
                nothing_to_send += 1
    assert nothing_to_send == 0 or mode is GenerationMode.NEGATIVE
    assert sent >= 20
    assert sent + nothing_to_send >= 40


@pytest.mark.slow
def test_walks_through_all_operations(describe: Callable[[int], BaseSchema]) -> None:
    """Objects that one walk made are there for the next, so a walk cannot be repeated, and each seed has its own."""
    walks, steps = 0, 0
    failures: list[tuple[str, str]] = []
    for number in range(SEEDS):
        for event in from_schema(describe(number)).execute():
            assert not isinstance(event, NonFatalError | FatalError), event
            if isinstance(event, ScenarioFinished) and event.phase.name == "STATEFUL_TESTING":
                walks += 1
                steps += len(event.recorder.cases)
                for case_id, made in event.recorder.checks.items():
                    request = event.recorder.cases[case_id].value.as_curl_command()
                    failures += [(each.name, request) for each in made if each.status is Status.FAILURE]
    assert failures == []
    assert walks >= 5 * SEEDS
    assert steps >= 25 * SEEDS

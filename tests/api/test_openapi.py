"""The description names every operation, its scope's error, and an example that its own schema accepts."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.examples import EXAMPLES
from jenga_core.service.settings import Settings


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As a client gets it."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("described"), broker_url="memory://")
    with TestClient(create_app(settings)) as client:
        described: dict[str, Any] = client.get("/openapi.json").json()
        return described


def operations(description: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in description["paths"].items()
        for method, operation in item.items()
    }


def check(description: dict[str, Any], content: dict[str, Any]) -> None:
    """Raise unless the example is one that the schema accepts."""
    schema = {**content["schema"], "components": description["components"]}
    jsonschema_rs.validator_for(schema).validate(content["example"])


def test_every_operation_has_an_example_and_no_example_is_left_over(description: dict[str, Any]) -> None:
    assert set(EXAMPLES) == set(operations(description))
    assert len(EXAMPLES) >= 40


def test_examples_are_what_the_schemas_say(description: dict[str, Any], subtests: pytest.Subtests) -> None:
    for (method, path), operation in operations(description).items():
        with subtests.test(method=method, path=path):
            content = operation["responses"]["200"]["content"]
            if "application/json" in content and not path.endswith("/content"):
                check(description, content["application/json"])
            assert any("example" in each for each in content.values())
            body = operation.get("requestBody", {}).get("content", {})
            if "application/json" in body:
                check(description, body["application/json"])


def test_a_wrong_example_would_be_found(description: dict[str, Any]) -> None:
    content = operations(description)["GET", "/v1/me"]["responses"]["200"]["content"]["application/json"]
    with pytest.raises(jsonschema_rs.ValidationError):
        check(description, {**content, "example": {**content["example"], "team": None}})


def test_every_operation_says_what_it_does_and_how_it_fails(
    description: dict[str, Any], subtests: pytest.Subtests
) -> None:
    for (method, path), operation in operations(description).items():
        with subtests.test(method=method, path=path):
            assert operation["description"]
            assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
            assert "422" not in operation["responses"]
            assert ("security" in operation) == (path not in ("/healthz", "/readyz"))

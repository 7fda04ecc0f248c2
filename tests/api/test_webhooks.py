"""Webhooks over the API: made with a secret that is shown once, and nowhere that is private."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from jenga_core.service.webhooks import endpoints
from tests.api.conftest import Api, error_of

URL = "https://93.184.215.14/hook"


def test_make_list_delete(api: Api) -> None:
    made = api.client.post("/v1/webhooks", json={"url": URL}).json()
    secret = made.pop("secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert made == {
        "id": made["id"],
        "object": "webhook_endpoint",
        "created_at": made["created_at"],
        "url": URL,
        "events": ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"],
    }
    assert api.client.get(f"/v1/webhooks/{made['id']}").json() == made
    listed = api.client.get("/v1/webhooks")
    assert listed.json()["data"] == [made]
    assert secret not in listed.text
    assert api.client.delete(f"/v1/webhooks/{made['id']}").json()["deleted"]
    error_of(api.client.get(f"/v1/webhooks/{made['id']}"), 404)


def test_every_endpoint_has_a_secret_of_its_own(api: Api) -> None:
    secrets = {api.client.post("/v1/webhooks", json={"url": URL}).json()["secret"] for _ in range(3)}
    assert len(secrets) == 3


_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"url": "http://93.184.215.14/"}, "url"),
    ({"url": "https://127.0.0.1/"}, "url"),
    ({"url": "https://169.254.169.254/latest/meta-data"}, "url"),
    ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
    ({"url": ""}, "url"),
    ({"url": URL, "events": []}, "events"),
    ({"url": URL, "events": ["batch.completed"]}, "events.0"),
    ({"url": URL, "secret": "mine"}, "secret"),
]


def test_what_is_refused_leaves_nothing(api: Api, subtests: pytest.Subtests) -> None:
    for body, param in _REFUSED:
        with subtests.test(body=body):
            assert error_of(api.client.post("/v1/webhooks", json=body), 400)["param"] == param
    assert api.client.get("/v1/webhooks").json()["data"] == []


def test_a_team_has_so_many_and_no_more(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MAX_ENDPOINTS", 2)
    answers = [api.client.post("/v1/webhooks", json={"url": URL}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert error_of(answers[2], 400)["code"] == "too_many_webhooks"

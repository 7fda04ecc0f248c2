"""GET /v1/predictors: the team's, newest first, and nobody else's."""

from __future__ import annotations

from jenga_core.service.db.models import PredictorEntry
from tests.api.conftest import Api, error_of, key_of
from tests.support.jobs import Seed, seed, submit_job

PATH = "/v1/predictors"


def add(api: Api, seeded: Seed, number: int) -> str:
    """A row that is `number` seconds younger than the first; return its id."""
    row = PredictorEntry(
        id=f"pred-{seeded.team_id[-6:]}{number}",
        team_id=seeded.team_id,
        base_model=seeded.model,
        fingerprint="ab" * 32,
        folder=f"predictors/{seeded.team_id}/{number}",
        settings={"layers": [1], "block_tokens": 64},
        report={"parameters": 7, "layers": {"1": {"recall": 0.96}}},
        job_id=submit_job(api.database, seeded),
        created_at=1e9 + number,
    )
    with api.database.writing() as session:
        session.add(row)
        return row.id


def test_list_and_pages(api: Api) -> None:
    assert api.client.get(PATH).json()["data"] == []
    first, second, third = (add(api, api.seeded, number) for number in range(3))
    listed = api.client.get(PATH).json()
    assert [item["id"] for item in listed["data"]] == [third, second, first]
    page = api.client.get(PATH, params={"limit": 2}).json()
    assert (page["has_more"], page["last_id"]) == (True, second)
    rest = api.client.get(PATH, params={"after": second}).json()
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == ([first], False)
    oldest = listed["data"][-1]
    assert oldest.pop("job_id").startswith("ftjob-")
    assert oldest == {
        "id": first,
        "object": "predictor",
        "created_at": 10**9,
        "base_model": api.seeded.model,
        "fingerprint": "ab" * 32,
        "settings": {"layers": [1], "block_tokens": 64},
        "report": {"parameters": 7, "layers": {"1": {"recall": 0.96}}},
    }


def test_teams_do_not_see_each_other_s(api: Api) -> None:
    others = seed(api.database, api.settings)
    mine, theirs = add(api, api.seeded, 0), add(api, others, 1)
    key = key_of(api.database, api.settings, others.team_id)
    assert [item["id"] for item in api.client.get(PATH).json()["data"]] == [mine]
    seen = api.client.get(PATH, headers={"Authorization": f"Bearer {key}"}).json()
    assert [item["id"] for item in seen["data"]] == [theirs]
    refused = error_of(api.client.get(PATH, params={"after": theirs}), 400)
    assert (refused["code"], refused["param"]) == ("invalid_cursor", "after")


def test_a_key_is_needed(api: Api) -> None:
    error_of(api.anonymous().get(PATH), 401)

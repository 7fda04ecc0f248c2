"""Files that come in parts: put together in the order given, checked as others are, and forgotten when they do not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import StoredFile, Upload
from jenga_core.service.files import uploads
from jenga_core.service.files.sweep import sweep
from tests.api.conftest import ROW, Api, error_of

ROWS = ROW * 300


def begin(api: Api, size: int = len(ROWS), **fields: Any) -> str:
    body = {"bytes": size, "filename": "big.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune", **fields}
    response = api.client.post("/v1/uploads", json=body)
    assert response.status_code == 200, response.text
    upload_id: str = response.json()["id"]
    return upload_id


def part(api: Api, upload_id: str, data: bytes) -> Any:
    return api.client.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("blob", data)})


def complete(api: Api, upload_id: str, parts: list[str], **fields: Any) -> Any:
    return api.client.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": parts, **fields})


def stored(api: Api) -> list[Path]:
    return sorted(api.app.state.files.folder.iterdir())


def test_parts_become_a_file_in_the_order_given(api: Api) -> None:
    before = stored(api)
    upload_id = begin(api)
    second, first = (part(api, upload_id, ROWS[at : at + 4000]).json() for at in (4000, 0))
    assert first == {
        "id": first["id"],
        "object": "upload.part",
        "created_at": first["created_at"],
        "upload_id": upload_id,
    }
    rest = part(api, upload_id, ROWS[8000:]).json() if len(ROWS) > 8000 else None
    ids = [first["id"], second["id"], *([rest["id"]] if rest else [])]
    done = complete(api, upload_id, ids, md5=hashlib.md5(ROWS).hexdigest().upper()).json()
    assert (done["status"], done["bytes"], done["filename"]) == ("completed", len(ROWS), "big.jsonl")
    assert (done["file"]["status"], done["file"]["bytes"]) == ("processed", len(ROWS))
    assert api.client.get(f"/v1/files/{done['file']['id']}/content").content == ROWS
    assert len(stored(api)) == len(before) + 1
    assert api.create(training_file=done["file"]["id"]).status_code == 200


def test_a_wrong_checksum_or_a_missing_part_can_be_mended(api: Api) -> None:
    upload_id = begin(api)
    one = part(api, upload_id, ROWS[:4000]).json()["id"]
    error = error_of(complete(api, upload_id, [one]), 400)
    assert (error["code"], error["param"]) == ("upload_incomplete", "part_ids")
    two = part(api, upload_id, ROWS[4000:]).json()["id"]
    before = stored(api)
    for wrong, code in (([two, one, one], "invalid_part"), (["part_x"], "invalid_part")):
        assert error_of(complete(api, upload_id, wrong), 400)["code"] == code
    error = error_of(complete(api, upload_id, [one, two], md5="0" * 32), 400)
    assert (error["code"], error["param"]) == ("checksum_mismatch", "md5")
    assert stored(api) == before
    assert complete(api, upload_id, [one, two]).json()["status"] == "completed"


def test_more_than_was_announced_is_refused(api: Api) -> None:
    upload_id = begin(api, size=10)
    before = stored(api)
    assert error_of(part(api, upload_id, b"x" * 11), 400)["code"] == "upload_too_large"
    assert stored(api) == before
    assert part(api, upload_id, b"x" * 10).status_code == 200


def test_an_upload_that_has_ended_takes_nothing(api: Api) -> None:
    upload_id = begin(api, size=len(ROW))
    one = part(api, upload_id, ROW).json()["id"]
    assert complete(api, upload_id, [one]).json()["file"]["status"] == "processed"
    for response in (
        part(api, upload_id, ROW),
        complete(api, upload_id, [one]),
        api.client.post(f"/v1/uploads/{upload_id}/cancel"),
    ):
        error = error_of(response, 409)
        assert error["code"] == "upload_not_pending"
        assert "completed" in error["message"]
        assert response.headers["x-should-retry"] == "false"


def test_cancelling_forgets_the_parts(api: Api) -> None:
    before = stored(api)
    upload_id = begin(api)
    one = part(api, upload_id, ROWS[:4000]).json()["id"]
    used = api.client.get("/v1/me").json()["quotas"]["used"]["storage_bytes"]
    cancelled = api.client.post(f"/v1/uploads/{upload_id}/cancel").json()
    assert (cancelled["status"], cancelled["file"]) == ("cancelled", None)
    assert stored(api) == before
    assert api.client.get("/v1/me").json()["quotas"]["used"]["storage_bytes"] == used - 4000
    error_of(complete(api, upload_id, [one]), 409)


def test_an_upload_expires(api: Api) -> None:
    upload_id = begin(api)
    part(api, upload_id, ROWS[:4000])
    before = stored(api)
    with api.database.writing() as session:
        session.get_one(Upload, upload_id).expires_at = database_now() - 1
    assert "expired" in error_of(part(api, upload_id, ROWS[4000:]), 409)["message"]
    assert sweep(api.database, api.app.state.files) == 1
    assert len(stored(api)) == len(before) - 1
    with api.database.reading() as session:
        assert session.get_one(Upload, upload_id).status == "expired"


_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"bytes": 0}, "bytes"),
    ({"purpose": "batch"}, "purpose"),
    ({"filename": ""}, "filename"),
    ({"expires_after": {"anchor": "created_at", "seconds": 60}}, "expires_after.seconds"),
    ({"typo": 1}, "typo"),
]


def test_uploads_that_are_refused(api: Api, subtests: pytest.Subtests) -> None:
    good = {"bytes": 1, "filename": "a", "mime_type": "b", "purpose": "fine-tune"}
    for fields, param in _REFUSED:
        with subtests.test(fields=fields):
            assert error_of(api.client.post("/v1/uploads", json={**good, **fields}), 400)["param"] == param
    too_large = api.client.post("/v1/uploads", json={**good, "bytes": api.settings.max_upload_bytes + 1})
    assert error_of(too_large, 413)["param"] == "bytes"


def test_a_part_over_the_cap_is_not_stored(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.gate.MAX_PART_BYTES", 100)
    monkeypatch.setattr("api.gate.MULTIPART_BYTES", 400)
    upload_id = begin(api)
    before = stored(api)
    error_of(part(api, upload_id, b"x" * 600), 413)
    assert stored(api) == before
    assert part(api, upload_id, b"x" * 100).status_code == 200


def test_the_file_of_an_upload_expires_when_asked(api: Api) -> None:
    upload_id = begin(api, size=len(ROW), expires_after={"anchor": "created_at", "seconds": 3600})
    one = part(api, upload_id, ROW).json()["id"]
    file = complete(api, upload_id, [one]).json()["file"]
    assert file["expires_at"] - file["created_at"] == pytest.approx(3600, abs=1)


def test_a_file_that_expired_does_not_exist_and_its_bytes_go_when_no_job_needs_them(api: Api) -> None:
    fields = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = api.client.post("/v1/files", files={"file": ("a", ROW)}, data=fields).json()
    assert file["expires_at"] - file["created_at"] == pytest.approx(3600, abs=1)
    job_id = api.create(training_file=file["id"]).json()["id"]
    with api.database.writing() as session:
        session.get_one(StoredFile, file["id"]).expires_at = database_now() - 1
    error_of(api.client.get(f"/v1/files/{file['id']}"), 404)
    assert file["id"] not in api.client.get("/v1/files").text
    error_of(api.create(training_file=file["id"]), 404)
    assert sweep(api.database, api.app.state.files) == 0
    api.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    assert sweep(api.database, api.app.state.files) == 1
    assert not api.app.state.files.path(file["id"]).exists()


def test_of_two_completions_one_wins(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id = begin(api, size=len(ROW))
    one = part(api, upload_id, ROW).json()["id"]
    assemble = uploads.assemble
    inner: list[Any] = []

    def slow(*arguments: Any) -> None:
        assemble(*arguments)
        monkeypatch.setattr(uploads, "assemble", assemble)
        inner.append(complete(api, upload_id, [one]))  # another request, while this one is at work

    monkeypatch.setattr(uploads, "assemble", slow)
    assert error_of(complete(api, upload_id, [one]), 409)["code"] == "upload_not_pending"
    assert inner[0].status_code == 200
    assert len(api.client.get("/v1/files").json()["data"]) == 2  # the seeded one, and one of ours

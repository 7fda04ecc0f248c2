"""Uploads stream to disk, are checked row by row, and come back byte for byte."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from api import multipart
from jenga_core.service.files import check
from jenga_core.service.files.store import FileStore
from tests.api.conftest import ROW, Api, error_of


def test_upload_and_download(api: Api) -> None:
    rows = ROW * 100_000  # over the size at which a thread writes
    assert len(rows) > 2 * multipart.FLUSH_BYTES
    uploaded = api.upload(rows).json()
    assert uploaded == {
        "id": uploaded["id"],
        "object": "file",
        "bytes": len(rows),
        "created_at": uploaded["created_at"],
        "expires_at": None,
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
    }
    assert re.fullmatch(r"file-\w{24}", uploaded["id"])
    assert isinstance(uploaded["created_at"], int)
    assert api.client.get(f"/v1/files/{uploaded['id']}").json() == uploaded
    content = api.client.get(f"/v1/files/{uploaded['id']}/content")
    assert content.content == rows
    assert content.headers["content-disposition"].startswith("attachment")


_WRONG_ROWS = [
    (ROW + b"{broken\n", "Row 2: not valid JSON"),
    (ROW + ROW + b'{"text": 3}\n', "Row 3: 'text' must be a string, got a number"),
    (b'{"messages": []}\n', "Row 1: 'messages' must be a non-empty list"),
    (b'{"a\\u0000b": 1}\n', "Row 1: expected 'text', 'messages'"),
    (b'{"text": "\xff"}\n', "Row 1: not UTF-8"),
    (b"\n\n", "the file holds no rows"),
    (b"", "the file holds no rows"),
]


def test_a_wrong_row_is_named(api: Api, subtests: pytest.Subtests) -> None:
    for rows, reason in _WRONG_ROWS:
        with subtests.test(rows=rows):
            response = api.upload(rows)
            assert response.status_code == 200
            file = response.json()
            assert file["status"] == "error"
            assert file["status_details"].startswith(reason)
            assert api.client.get(f"/v1/files/{file['id']}").json() == file


def test_a_file_without_line_ends_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("jenga_core.training_rows.MAX_ROW_BYTES", 1000)
    path = tmp_path / "one-line.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 5000 + b'"}')
    with pytest.raises(Exception, match="Row 1: the row has 1002 bytes; at most 1000"):
        check.count_rows(path)


_FILENAMES = [
    ("../../etc/passwd", "passwd"),
    ("C:\\data\\train.jsonl", "train.jsonl"),
    ("dir/", "upload"),
    ("naïve ü.jsonl", "naïve ü.jsonl"),
    ("x" * 400, "x" * 255),
]


def test_filenames_are_for_people_only(api: Api, subtests: pytest.Subtests) -> None:
    for filename, kept in _FILENAMES:
        with subtests.test(filename=filename):
            file = api.upload(filename=filename).json()
            assert file["filename"] == kept
            assert api.app.state.files.path(file["id"]).read_bytes() == ROW


_REFUSED_FORMS = [
    ({"file": ("a", ROW)}, {"purpose": "assistants"}, "purpose"),
    ({"file": ("a", ROW)}, {"purpose": "fine-tune-results"}, "purpose"),
    ({"file": ("a", ROW)}, {}, "purpose"),
    ({"other": ("a", ROW)}, {"purpose": "fine-tune"}, "file"),
    ([("file", ("a", ROW)), ("file", ("b", ROW))], {"purpose": "fine-tune"}, "file"),
    ({"file": ("a", ROW)}, {"purpose": "fine-tune", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
    (
        {"file": ("a", ROW)},
        {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
        "expires_after[seconds]",
    ),
    ({"file": ("a", ROW)}, {"purpose": "fine-tune", "expires_in": "3600"}, "expires_in"),
]


def test_forms_that_are_refused_leave_nothing(api: Api, subtests: pytest.Subtests) -> None:
    for files, data, param in _REFUSED_FORMS:
        with subtests.test(data=data, param=param):
            before = sorted(api.app.state.files.folder.iterdir())
            response = api.client.post("/v1/files", files=files, data=data)  # type: ignore[arg-type]
            assert error_of(response, 400)["param"] == param
            assert sorted(api.app.state.files.folder.iterdir()) == before
            assert len(api.client.get("/v1/files").json()["data"]) == 1  # the seeded one


_MALFORMED = [
    (b"{}", "application/json"),
    (b"", "multipart/form-data"),
    (b"no boundary in here", "multipart/form-data; boundary=B"),
    (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"te',
        "multipart/form-data; boundary=B",
    ),
    (
        b"--B\r\nContent-Disposition: form-data\r\n\r\n" + b"x" * 5000 + b"\r\n--B--\r\n",
        "multipart/form-data; boundary=B",
    ),
    (b"", f"multipart/form-data; boundary={'B' * 1000}"),
]


def test_malformed_bodies_leave_nothing(api: Api, subtests: pytest.Subtests) -> None:
    for content, content_type in _MALFORMED:
        with subtests.test(content=content[:40], content_type=content_type[:50]):
            before = sorted(api.app.state.files.folder.iterdir())
            response = api.client.post("/v1/files", content=content, headers={"content-type": content_type})
            error_of(response, 400)
            assert sorted(api.app.state.files.folder.iterdir()) == before


def test_a_row_that_cannot_be_stored_leaves_no_bytes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk")

    before = sorted(api.app.state.files.folder.iterdir())
    monkeypatch.setattr("jenga_core.service.files.registration.StoredFile", broken)
    error_of(api.upload(), 500)
    assert sorted(api.app.state.files.folder.iterdir()) == before


def test_list_by_purpose_and_order(api: Api) -> None:
    ids = [api.upload().json()["id"] for _ in range(3)]
    newest_first = [file["id"] for file in api.client.get("/v1/files").json()["data"]]
    assert newest_first == [*reversed(ids), api.seeded.training_file]
    oldest_first = [file["id"] for file in api.client.get("/v1/files?order=asc").json()["data"]]
    assert oldest_first == newest_first[::-1]
    assert api.client.get("/v1/files?purpose=fine-tune-results").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_delete(api: Api) -> None:
    file_id = api.upload().json()["id"]
    assert api.client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    error_of(api.client.get(f"/v1/files/{file_id}"), 404)
    assert not FileStore(api.settings).path(file_id).exists()


@pytest.mark.parametrize("role", ["training_file", "validation_file"])
def test_a_file_in_use_cannot_be_deleted(api: Api, role: str) -> None:
    file_id = api.upload().json()["id"]
    job_id = api.create(**{role: file_id}).json()["id"]
    response = api.client.delete(f"/v1/files/{file_id}")
    error = error_of(response, 409)
    assert (error["type"], error["code"]) == ("conflict_error", "file_in_use")
    assert response.headers["x-should-retry"] == "false"
    assert job_id in error["message"]
    api.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    assert api.client.delete(f"/v1/files/{file_id}").status_code == 200


def test_lost_bytes_are_an_error_and_not_an_empty_file(api: Api) -> None:
    file_id = api.upload(json.dumps({"text": "x"}).encode()).json()["id"]
    api.app.state.files.delete(file_id)
    assert "gone" in error_of(api.client.get(f"/v1/files/{file_id}/content"), 404)["message"]

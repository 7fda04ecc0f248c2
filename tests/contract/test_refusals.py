"""What a stranger gets from the real server: an answer, before the body was sent."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

import openai
import pytest

from jenga_core.service.accounts.keys import Scope, create_key
from jenga_core.service.db.models import Team
from tests.contract.conftest import Service

SIZE = 100 * 2**20


@pytest.mark.parametrize(
    ("key", "status", "code"), [("wrong", 401, "invalid_api_key"), ("reader", 403, "insufficient_permissions")]
)
@pytest.mark.parametrize("framing", [f"Content-Length: {SIZE}", "Transfer-Encoding: chunked"])
def test_a_large_body_is_refused_unread(service: Service, key: str, status: int, code: str, framing: str) -> None:
    if key == "reader":
        with service.database.writing() as session:
            team = session.get_one(Team, service.seeded.team_id)
            key = create_key(session, team, "reader", pepper=service.settings.pepper, scopes=[Scope.READ])
    head = (
        "POST /v1/files HTTP/1.1\r\n"
        f"Host: {service.host}\r\n"
        f"Authorization: Bearer {key}\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n"
        f"{framing}\r\n\r\n"
    )
    piece = b"x" * 2**16
    if "chunked" in framing:
        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
    with socket.create_connection((service.host, service.port), timeout=30) as connection:
        connection.sendall(head.encode() + piece)
        answer = connection.recv(65536).decode()
        while "\r\n\r\n" not in answer or not answer.endswith("}"):
            received = connection.recv(65536).decode()
            assert received, f"the connection closed after {answer!r}"
            answer += received
        with suppress(OSError):  # what a client does that does not listen
            for _ in range(SIZE // len(piece)):
                connection.sendall(piece)
    headers, _, body = answer.partition("\r\n\r\n")
    assert headers.startswith(f"HTTP/1.1 {status}")
    assert json.loads(body)["error"]["code"] == code
    assert "x-request-id: req_" in headers.lower()
    assert sum(service.received_bytes) < 2**20
    assert not list(service.app.state.files.folder.glob(".partial-*"))


def test_the_client_hears_why_its_large_body_was_refused(service: Service) -> None:
    with service.client(key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.files.create(file=b"x" * 20 * 2**20, purpose="fine-tune")
    with service.database.writing() as session:
        session.get_one(Team, service.seeded.team_id).max_storage_bytes = 1000
    with service.client() as client, pytest.raises(openai.PermissionDeniedError) as caught:
        client.files.create(file=b"x" * 20 * 2**20, purpose="fine-tune")
    assert caught.value.code == "quota_exceeded"
    assert sum(service.received_bytes) < 2 * 2**20

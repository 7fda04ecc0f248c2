"""What a stranger gets from the real server: an answer, before the body was sent."""

from __future__ import annotations

import json
import socket

from tests.contract.conftest import Service


def test_a_wrong_key_is_refused_before_the_body_was_sent(service: Service) -> None:
    head = (
        "POST /v1/files HTTP/1.1\r\n"
        f"Host: {service.host}\r\n"
        "Authorization: Bearer wrong\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n"
        f"Content-Length: {64 * 2**20}\r\n\r\n"
    )
    with socket.create_connection((service.host, service.port), timeout=30) as connection:
        connection.sendall(head.encode() + b"x" * 1000)
        answer = connection.recv(65536).decode()
        while "\r\n\r\n" not in answer or not answer.endswith("}"):
            received = connection.recv(65536).decode()
            assert received, f"the connection closed after {answer!r}"
            answer += received
    headers, _, body = answer.partition("\r\n\r\n")
    assert headers.startswith("HTTP/1.1 401")
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    assert "x-request-id: req_" in headers.lower()

"""Only public addresses, and the one that was checked is the one that is called."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from jenga_core.service.webhooks.targets import RefusedTarget, resolve

_NOT_PUBLIC = [
    "127.0.0.1",
    "127.1",  # the resolver completes it
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # cloud metadata
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "2130706433",  # 127.0.0.1 as one number
    "0x7f000001",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fc00::1]",
    "[ff02::1]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "localhost",
]


@pytest.mark.parametrize("host", _NOT_PUBLIC)
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(RefusedTarget):
        resolve(f"https://{host}/hook", private_allowed=False)


_NO_TARGETS = [
    "http://93.184.215.14/",
    "ftp://93.184.215.14/",
    "file:///etc/passwd",
    "https://",
    "https:///path",
    "//93.184.215.14/",
    "hello",
    "",
    "https://user:secret@93.184.215.14/",
    "https://93.184.215.14/#fragment",
    "https://93.184.215.14:99999/",
    "https://[::1/",
    "https://no-such-host.invalid/",
    "https://" + "a" * 300 + "/",
]


@pytest.mark.parametrize("url", _NO_TARGETS)
def test_what_is_no_target_is_refused(url: str) -> None:
    with pytest.raises(RefusedTarget) as caught:
        resolve(url, private_allowed=False)
    assert caught.value.param == "url"


def test_a_public_address() -> None:
    target = resolve("https://93.184.215.14/a/b?c=d", private_allowed=False)
    assert (target.host, target.address, target.port, target.path) == (
        "93.184.215.14",
        "93.184.215.14",
        443,
        "/a/b?c=d",
    )


def test_private_addresses_and_plain_http_where_they_are_allowed() -> None:
    target = resolve("http://127.0.0.1:8080", private_allowed=True)
    assert (target.scheme, target.address, target.port, target.path) == ("http", "127.0.0.1", 8080, "/")


def _resolving_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make every look-up return the next of these answers; the names that were looked up."""
    asked: list[str] = []
    left = list(answers)

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_one_private_address_among_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolving_to(monkeypatch, ["93.184.215.14", "10.0.0.1"])
    with pytest.raises(RefusedTarget, match=r"10\.0\.0\.1"):
        resolve("https://two-faced.example/", private_allowed=False)


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _resolving_to(monkeypatch, ["93.184.215.14"], ["127.0.0.1"])
    target = resolve("https://rebinding.example/", private_allowed=False)
    assert (target.address, target.host) == ("93.184.215.14", "rebinding.example")
    assert asked == ["rebinding.example"]

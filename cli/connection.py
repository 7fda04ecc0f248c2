"""The HTTP side of the command line: base URL, key, and error answers as exceptions.

The address is JENGA_BASE_URL, else the one that `jenga up` recorded in the data folder while it runs, else
http://127.0.0.1:8000. The key is JENGA_API_KEY, else DATA_DIR/admin.key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from jenga_core.errors import AuthenticationError, ConfigError, JengaError
from jenga_core.service.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8000"
PAGE = 100
COMMANDS = {
    "GET /v1/files": "`jenga files list`",
    "GET /v1/fine_tuning/jobs": "`jenga list`",
    "GET /v1/keys": "`jenga keys list`",
    "GET /v1/teams": "`jenga teams list`",
}
"""What answers tell to ask for, and the command that asks for it."""


class ServiceError(JengaError):
    """The service refused; the message is its own."""

    code = "service_error"


class Unreachable(ServiceError):
    """Nothing answers, or it answers that it cannot now; worth another try."""

    code = "unreachable"
    exit_code = 5


class Service:
    """A connection to one running Jenga. Answers are parsed JSON; anything else raises ServiceError."""

    def __init__(self, settings: Settings) -> None:
        self.url = base_url(settings)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key_of(settings)}"},
            timeout=httpx.Timeout(30, write=None, read=300),
            trust_env=not _is_loopback(self.url),  # no proxy leads to this machine
        )

    def get(self, path: str, **params: Any) -> Any:
        """GET below `/v1`."""
        return self._answer("GET", path, params=params)

    def post(self, path: str, **request: Any) -> Any:
        """POST below `/v1`; keyword arguments are httpx's (json, data, files)."""
        return self._answer("POST", path, **request)

    def delete(self, path: str) -> Any:
        """DELETE below `/v1`."""
        return self._answer("DELETE", path)

    def content(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file, piece by piece."""
        with _reached(self.url), self._http.stream("GET", f"/v1/files/{file_id}/content") as response:
            if response.is_error:
                response.read()
            self._check(response)
            yield from response.iter_bytes()

    def pages(self, path: str, *, most: int, **params: Any) -> list[dict[str, Any]]:
        """Entries of a list, page after page, `most` of them at most."""
        found: list[dict[str, Any]] = []
        while len(found) < most:
            page = self.get(path, limit=min(PAGE, most - len(found)), **params)
            found += page["data"]
            if not page["has_more"] or not page["data"]:
                break
            params["after"] = page["data"][-1]["id"]
        return found

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        with _reached(self.url):
            response = self._http.request(method, f"/v1{path}", **request)
        self._check(response)
        return response.json() if response.content else None

    def _check(self, response: httpx.Response) -> None:
        if response.is_error:
            may_pass = response.status_code in (429, 502, 503, 504)
            kind = Unreachable if may_pass and response.headers.get("x-should-retry") != "false" else ServiceError
            raise kind(f"{self.url} answered {response.status_code}: {_message(response)}")


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Raises Unreachable where the connection fails."""
    try:
        yield
    except httpx.TransportError as error:
        raise Unreachable(
            f"cannot reach Jenga at {url}: {str(error).rstrip('.')}. Start it with `jenga up`, or set JENGA_BASE_URL."
        ) from error


@contextmanager
def connected(settings: Settings) -> Iterator[Service]:
    """A Service that is closed when the block ends."""
    service = Service(settings)
    try:
        yield service
    finally:
        service.close()


def base_url(settings: Settings) -> str:
    """Where the service is, without `/v1` and without a slash at the end. Raises ConfigError for what is no URL."""
    recorded = address_file(settings)
    fallback = recorded.read_text().strip() if recorded.exists() else DEFAULT_URL
    url = os.environ.get("JENGA_BASE_URL") or fallback
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"JENGA_BASE_URL is {url!r}; it must begin with http:// or https://")
    return url.rstrip("/").removesuffix("/v1")


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    return host == "localhost" or host.startswith("127.") or host == "::1"


def address_file(settings: Settings) -> Path:
    """Where `jenga up` records its address for as long as it runs."""
    return settings.data_dir.expanduser() / "service.url"


def key_of(settings: Settings) -> str:
    """JENGA_API_KEY, else the first key of the data folder. Raises AuthenticationError."""
    if key := os.environ.get("JENGA_API_KEY"):
        return key
    if not settings.admin_key_file.exists():
        raise AuthenticationError(
            f"no API key: JENGA_API_KEY is not set and {settings.admin_key_file} does not exist; "
            "set the variable, or name the folder of your `jenga up` with --data-dir"
        )
    return settings.admin_key_file.read_text().strip()


def _message(response: httpx.Response) -> str:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or response.reason_phrase
    for request, command in COMMANDS.items():
        message = message.replace(request, command)
    return message

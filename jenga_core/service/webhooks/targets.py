"""Where a webhook may go: to public addresses, over https, and to the very address that was checked.

A name that resolves to a public address when it is checked and to 127.0.0.1 when it is called would reach what only
this machine may (server-side request forgery by DNS rebinding). So the name is resolved once, every address that it
has must be public, and the connection is made to one of them; the name still goes into TLS and into the Host header.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from jenga_core.errors import ConfigError

MAX_URL_CHARACTERS = 2000


class RefusedTarget(ConfigError):
    """An address that a webhook may not go to."""

    code = "invalid_webhook_url"


@dataclass(frozen=True)
class Target:
    """An address, resolved."""

    scheme: str
    host: str
    """As the caller wrote it."""

    address: str
    """The IP address to connect to."""

    port: int
    path: str
    """With the query."""


def resolve(url: str, *, private_allowed: bool) -> Target:
    """Check an address and resolve its name, once. Raises RefusedTarget."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RefusedTarget(f"url is no web address: {error}", param="url") from error
    scheme = parts.scheme.lower()
    if scheme not in (("https", "http") if private_allowed else ("https",)) or not parts.hostname:
        raise RefusedTarget(f"url must read https://HOST/PATH, got {url[:200]!r}", param="url")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise RefusedTarget("url must hold no user, password or fragment; deliveries are signed instead", param="url")
    port = port or (443 if scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RefusedTarget(f"the host {parts.hostname!r} of url cannot be resolved: {error}", param="url") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not private_allowed and not _is_public(address):
            raise RefusedTarget(
                f"the host {parts.hostname!r} of url has the address {address}, which is not public; an administrator "
                "can allow such addresses with JENGA_WEBHOOKS_TO_PRIVATE_ADDRESSES",
                param="url",
            )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme, parts.hostname, addresses[0], port, path)


def _is_public(address: str) -> bool:
    """Global unicast; an IPv6 address that carries an IPv4 one is judged by that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return _is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return _is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast

"""How many requests a key may make in a minute, counted in the broker so that all API processes count together.

The count protects the service from a runaway script; it guards nothing secret. So when the broker does not answer,
requests pass uncounted, and the broker is left alone for a moment: a request must not wait for it twice.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cached_property

from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import Storage, storage_from_string
from limits.strategies import FixedWindowRateLimiter

from jenga_core.errors import ConfigError
from jenga_core.service.settings import Settings

TIMEOUT_SECONDS = 0.25
"""For the broker's answer."""

PAUSE_SECONDS = 5.0
"""After the broker did not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Allowance:
    """What is left of a key's minute."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float
    """Until the minute is over."""


class RateLimiter:
    """Counts requests by key."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._item = RateLimitItemPerMinute(max(1, settings.requests_per_minute), namespace="jenga-requests")
        self._paused_until = 0.0

    def count(self, key_id: str) -> Allowance | None:
        """Count one request; None when nothing is counted: no limit is set, or the broker does not answer."""
        if self._settings.requests_per_minute == 0 or time.monotonic() < self._paused_until:
            return None
        try:
            allowed = self._window.hit(self._item, key_id)
            stats = self._window.get_window_stats(self._item, key_id)
        except (StorageError, ConfigError) as error:
            log.warning("requests are not counted for %.0f s: %s", PAUSE_SECONDS, error)
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            return None
        return Allowance(allowed, self._item.amount, stats.remaining, max(0.0, stats.reset_time - time.time()))

    @cached_property
    def _window(self) -> FixedWindowRateLimiter:
        return FixedWindowRateLimiter(_storage(self._settings.broker))


def _storage(url: str) -> Storage:
    """The broker, as `limits` spells its address; a broker in memory counts in memory."""
    scheme, separator, rest = url.partition("://")
    if scheme == "memory":
        return storage_from_string("memory://", wrap_exceptions=True)  # type: ignore[return-value]
    known = {"redis+socket": "redis+unix"}.get(scheme, scheme)
    return storage_from_string(  # type: ignore[return-value]
        f"{known}{separator}{rest}",
        wrap_exceptions=True,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
    )

"""Requests are counted together by all processes, and pass uncounted where nobody can count."""

from __future__ import annotations

from pathlib import Path

import pytest

from jenga_core.service.accounts import rate_limit
from jenga_core.service.accounts.rate_limit import RateLimiter
from jenga_core.service.settings import Settings

LIMIT = 3


def test_processes_count_together(tmp_path: Path, broker_url: str) -> None:
    settings = Settings(data_dir=tmp_path, broker_url=broker_url, requests_per_minute=2 * LIMIT)
    first, second = RateLimiter(settings), RateLimiter(settings)
    counted = [limiter.count("key") for limiter in (first, second) for _ in range(LIMIT)]
    assert [each is not None and each.remaining for each in counted] == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis+socket:///nowhere/broker.sock", None])
def test_without_a_broker_nothing_is_counted(tmp_path: Path, url: str | None, caplog: pytest.LogCaptureFixture) -> None:
    limiter = RateLimiter(Settings(data_dir=tmp_path, broker_url=url, requests_per_minute=1))
    assert [limiter.count("key") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1  # and it is left alone for a while


def test_the_broker_is_asked_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "PAUSE_SECONDS", 0.0)
    limiter = RateLimiter(Settings(data_dir=tmp_path, requests_per_minute=2))
    assert limiter.count("key") is None
    (tmp_path / "broker.url").write_text("memory://\n")
    allowance = limiter.count("key")
    assert allowance is not None
    assert allowance.remaining == 1


def test_zero_is_no_limit(tmp_path: Path) -> None:
    limiter = RateLimiter(Settings(data_dir=tmp_path, broker_url="memory://", requests_per_minute=0))
    assert limiter.count("key") is None

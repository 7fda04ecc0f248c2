"""The doorbell: what it sends, and that a broker which is away costs a log line and nothing else."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from jenga_core.errors import ConfigError
from jenga_core.service.jobs import queue
from jenga_core.service.settings import Settings
from tests.support.broker import doorbell


@pytest.fixture
def bell(broker_url: str, tmp_path: Path) -> Iterator[Celery]:
    with doorbell(Settings(data_dir=tmp_path, broker_url=broker_url)) as app:
        yield app


def test_ringing_leaves_one_message_with_the_jobs_id(bell: Celery) -> None:
    assert queue.pending() == 0
    assert queue.ring("ftjob-1")
    assert queue.pending() == 1
    with bell.connection_or_acquire() as connection, connection.SimpleQueue(queue.RUN_QUEUE) as messages:
        message = messages.get(timeout=10)
        message.ack()
    assert message.headers["task"] == queue.RUN_TASK
    assert message.payload[1] == {"job_id": "ftjob-1"}
    assert queue.pending() == 0


def test_a_broker_that_is_away_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens here
        url = f"redis://127.0.0.1:{bound.getsockname()[1]}/0"
        with doorbell(Settings(data_dir=tmp_path, broker_url=url)), caplog.at_level(logging.WARNING):
            assert not queue.ring("ftjob-1")
            assert queue.pending() == 0
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "doorbell for ftjob-1 not rung, the reaper will ring again",
        "doorbells not counted",
    ]


def test_a_broker_that_was_away_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker_url: str
) -> None:
    with doorbell(Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")) as app:
        assert not queue.ring("ftjob-1")
        tried: list[str] = []
        monkeypatch.setattr(app, "send_task", lambda name, **_: tried.append(name))
        assert not queue.ring("ftjob-2")
        assert tried == []
        with doorbell(Settings(data_dir=tmp_path, broker_url=broker_url)):
            assert queue.ring("ftjob-3")  # another broker is another matter
        assert tried == [queue.RUN_TASK]


def test_the_pauses_between_tries_are_none() -> None:
    options = queue.celery_app.conf.broker_transport_options
    assert (options["interval_start"], options["interval_step"], options["interval_max"]) == (0, 0, 0)


def test_a_broker_is_checked_before_anything_counts_on_it(broker_url: str, tmp_path: Path) -> None:
    with doorbell(Settings(data_dir=tmp_path, broker_url=broker_url)):
        queue.check(Settings(data_dir=tmp_path, broker_url=broker_url))
        with pytest.raises(ConfigError, match=r"broker of JENGA_BROKER_URL does not answer.*127\.0\.0\.1:1"):
            queue.check(Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0"))


def test_the_settings_that_keep_a_long_job_from_running_twice() -> None:
    conf = queue.celery_app.conf
    assert conf.task_acks_late is False
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_disable_prefetch is True
    assert conf.result_backend is None
    assert conf.accept_content == ["json"]

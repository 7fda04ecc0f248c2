"""A job is measured against the fleet before it is queued: refused with the numbers, and with what would fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError
from jenga_core.memory.estimate import estimate
from jenga_core.memory.model_shape import ModelShape
from jenga_core.service.db.models import BaseModelEntry, Job, Worker
from jenga_core.service.db.session import Database
from jenga_core.service.fleet.plan import HOST_SHARE
from jenga_core.service.fleet.registration import Report
from jenga_core.service.jobs import spec
from jenga_core.service.jobs.spec import JobRequest
from jenga_core.service.settings import Settings
from tests.support.fleet import GIB, gpus, join_fleet
from tests.support.jobs import MODEL_CONFIG, Seed, seed

LARGE = {
    **MODEL_CONFIG,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 128256,
    "max_position_embeddings": 2**20,
}


@pytest.fixture
def seeded(database: Database, settings: Settings) -> Seed:
    made = seed(database, settings)
    (settings.folder("models", made.model) / "config.json").write_text(json.dumps(LARGE))
    with database.writing() as session:
        entry = session.get_one(BaseModelEntry, made.model)
        entry.parameters = ModelShape.from_config(LARGE).parameters
        entry.context_length_tokens = 2**20
    return made


def job_of(database: Database, settings: Settings, seeded: Seed, gpus: int = 1, **config: Any) -> Job:
    parsed = JengaConfig.parse({"preset": "lora", "context_length_tokens": 32768, **config})
    request = JobRequest(model=seeded.model, training_file=seeded.training_file, config=parsed, gpus=gpus)
    with database.reading() as session:
        return spec.job_of(session, seeded.team_id, request, settings)


def test_what_the_job_needs_is_part_of_it(database: Database, settings: Settings, seeded: Seed) -> None:
    join_fleet(database, *gpus("a", gib=80))
    job = job_of(database, settings, seeded, keep_fraction=0.2, preset="jenga")
    config = JengaConfig.parse({"context_length_tokens": 32768, "keep_fraction": 0.2})
    assert job.memory_bytes == estimate(ModelShape.from_config(LARGE), config).device_bytes


def test_a_job_that_fits_no_gpu_is_refused_with_what_would(
    database: Database, settings: Settings, seeded: Seed
) -> None:
    join_fleet(database, *gpus("a", gib=8))
    join_fleet(database, *gpus("b", gib=24), host="other")
    with pytest.raises(ConfigError) as refused:
        job_of(database, settings, seeded)
    said = refused.value.message
    assert (refused.value.code, refused.value.param) == ("does_not_fit", "jenga.context_length_tokens")
    assert "the largest GPU for it has 24.0 GiB; with these settings a context of up to " in said
    assert said.endswith("; at 32768 tokens recompute='mlp' would fit")
    longest = int(said.partition("up to ")[2].split()[0])
    assert job_of(database, settings, seeded, context_length_tokens=longest).memory_bytes is not None
    assert job_of(database, settings, seeded, recompute="mlp").memory_bytes is not None


def test_a_fleet_of_cpus_refuses_only_what_cannot_fit(database: Database, settings: Settings, seeded: Seed) -> None:
    assert job_of(database, settings, seeded).memory_bytes is not None  # nobody knows the fleet yet
    join_fleet(database, Report("CPU-1", "cpu", "test", 48 * GIB))
    with pytest.raises(ConfigError, match=r"GiB of CPU memory .* the largest CPU for it has 48\.0 GiB") as refused:
        job_of(database, settings, seeded)
    longest = int(refused.value.message.partition("up to ")[2].split()[0])
    assert job_of(database, settings, seeded, context_length_tokens=longest).memory_bytes is not None


def test_a_cpu_may_take_what_no_gpu_of_the_fleet_can(database: Database, settings: Settings, seeded: Seed) -> None:
    join_fleet(database, *gpus("a", gib=8))
    join_fleet(database, Report("CPU-1", "cpu", "test", 900 * GIB), host="other")
    assert job_of(database, settings, seeded).memory_bytes is not None


def test_what_offload_keeps_must_fit_the_memory_of_some_host(
    database: Database, settings: Settings, seeded: Seed
) -> None:
    offload = {"recompute": "full", "offload": True}
    kept = job_of(database, settings, seeded, **offload).host_bytes
    assert kept > GIB
    assert job_of(database, settings, seeded, recompute="full").host_bytes == 0
    gib = int(kept / HOST_SHARE / GIB) + 1  # enough for one device's share
    join_fleet(database, *gpus("a", "b", gib=80), host_gib=gib)
    assert job_of(database, settings, seeded, **offload).host_bytes == kept
    with pytest.raises(ConfigError, match=r"keeps about [\d.]+ GiB in its host's memory, and jobs may keep ") as no:
        job_of(database, settings, seeded, gpus=2, **offload)
    assert (no.value.code, no.value.param) == ("does_not_fit", "jenga.offload")
    join_fleet(database, *gpus("small", gib=1), host="small GPU", host_gib=9000)
    with pytest.raises(ConfigError, match=r"keeps about "):
        job_of(database, settings, seeded, gpus=2, **offload)
    join_fleet(database, *gpus("c", "d", gib=80), host="of unknown size")
    assert job_of(database, settings, seeded, gpus=2, **offload).host_bytes == kept


def test_offload_is_no_advice_where_no_host_has_room_for_it(
    database: Database, settings: Settings, seeded: Seed
) -> None:
    def refused(**config: Any) -> str:
        with pytest.raises(ConfigError) as error:
            job_of(database, settings, seeded, context_length_tokens=2**17, **config)
        return error.value.message

    worker = join_fleet(database, *gpus("a", gib=16))
    assert "recompute='full' and offload=True would fit" in refused()
    with database.writing() as session:
        session.get_one(Worker, worker).memory_bytes = GIB
    assert "offload" not in refused()


def test_more_devices_than_any_host_has_are_refused(database: Database, settings: Settings, seeded: Seed) -> None:
    assert job_of(database, settings, seeded, gpus=8).gpus == 8  # nobody knows the fleet yet
    join_fleet(database, *gpus("a", "b"))
    join_fleet(database, *gpus("c"), host="other")
    assert job_of(database, settings, seeded, gpus=2).gpus == 2
    with pytest.raises(ConfigError, match=r"jenga.gpus is 3, but no host of the fleet has more than 2; ask for fewer"):
        job_of(database, settings, seeded, gpus=3)

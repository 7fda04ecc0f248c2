"""What a job may be made of. Every request that is refused names its field and leaves no job."""

from __future__ import annotations

from typing import Any

import pytest

from jenga_core.service.db.models import BaseModelEntry, StoredFile
from tests.api.conftest import SMALL, Api, error_of

AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


def test_the_answer(api: Api, rings: list[str]) -> None:
    job = api.create(suffix="mine", seed=7, metadata={"team": "a b"}).json()
    assert rings == [job["id"]]
    assert job["jenga"].pop("config")["selection"]["keep_fraction"] == 0.4
    assert job == {
        "id": job["id"],
        "object": "fine_tuning.job",
        "created_at": job["created_at"],
        "finished_at": None,
        "estimated_finish": None,
        "model": api.seeded.model,
        "fine_tuned_model": None,
        "organization_id": api.seeded.team_id,
        "status": "queued",
        "error": None,
        "training_file": api.seeded.training_file,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "seed": 7,
        "hyperparameters": AUTO,
        "method": {"type": "supervised", "supervised": {"hyperparameters": AUTO}},
        "integrations": None,
        "metadata": {"team": "a b"},
        "user_provided_suffix": "mine",
        "jenga": {
            "state": "queued",
            "stage": "validate",
            "attempt": 0,
            "started_at": None,
            "ran_seconds": 0.0,
            "stop_asked_at": None,
            "step": 0,
            "total_steps": None,
            "report": None,
            "priority": 0,
            "gpus": 1,
            "oom_policy": "fail",
            "owner": "test",
            "queue": {"position": 1, "reason": "no worker is online"},
            "loss": None,
            "memory": None,
        },
    }
    assert api.client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["id"] == job["id"]


@pytest.mark.parametrize("suffix", ["v1.2_final-A", ".hidden", "7", "x" * 64])
def test_suffixes_that_do_in_a_name(api: Api, suffix: str) -> None:
    assert api.create(suffix=suffix).json()["user_provided_suffix"] == suffix


def test_a_seed_is_made_when_none_is_given(api: Api) -> None:
    seeds = [api.create().json()["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("place", ["method", "top", "both"])
def test_hyperparameters_from_either_place(api: Api, place: str) -> None:
    given = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    fields: dict[str, Any] = {"jenga": {"context_length_tokens": 128}}
    if place in ("method", "both"):
        fields["method"] = {"type": "supervised", "supervised": {"hyperparameters": given}}
    if place in ("top", "both"):
        fields["hyperparameters"] = given
    job = api.create(**fields).json()
    assert job["hyperparameters"] == given
    assert job["method"]["supervised"]["hyperparameters"] == given


def test_an_overruled_setting_is_a_warning_among_the_events(api: Api) -> None:
    job_id = api.create(hyperparameters={"n_epochs": 4}).json()["id"]
    events = api.client.get(f"/v1/fine_tuning/jobs/{job_id}/events").json()["data"]
    assert [(event["level"], event["message"]) for event in events] == [
        ("warn", "jenga.max_steps=3 overrules n_epochs=4"),
        ("info", f"Created fine-tuning job: {job_id}"),
    ]


_BAD_INPUT = [
    ({"model": "unknown"}, 404, "model_not_found", "model"),
    ({"model": "ft:model:team::abc"}, 404, "model_not_found", "model"),
    ({"training_file": "file-unknown"}, 404, "not_found", "training_file"),
    ({"validation_file": "file-unknown"}, 404, "not_found", "validation_file"),
    ({"jenga": {"context_length_tokens": 257}}, 400, "context_too_long", "jenga.context_length_tokens"),
    (
        {"jenga": {"context_length_tokens": 520, "rope": {"factor": 2}}},
        400,
        "context_too_long",
        "jenga.context_length_tokens",
    ),
    ({"jenga": {**SMALL, "keep_fraction": 0}}, 400, "invalid_config", "jenga.selection.keep_fraction"),
    ({"jenga": {**SMALL, "keep_fraction": 1.5}}, 400, "invalid_config", "jenga.selection.keep_fraction"),
    ({"jenga": {**SMALL, "selection": {"entry_layer": 2}}}, 400, "invalid_config", "jenga.selection.entry_layer"),
    ({"jenga": {**SMALL, "typo": 1}}, 400, "invalid_config", "jenga.typo"),
    ({"jenga": {**SMALL, "preset": "unknown"}}, 400, "invalid_config", "jenga"),
    ({"jenga": [1]}, 400, "invalid_value", "jenga"),
    ({"typo": 1}, 400, "unknown_parameter", "typo"),
    ({"seed": -1}, 400, "invalid_value", "seed"),
    ({"seed": 2**31}, 400, "invalid_value", "seed"),
    ({"suffix": ""}, 400, "invalid_value", "suffix"),
    ({"suffix": "x" * 65}, 400, "invalid_value", "suffix"),
    ({"suffix": "a\0b"}, 400, "invalid_value", "suffix"),
    ({"suffix": "a b"}, 400, "invalid_value", "suffix"),
    ({"suffix": "a/../b"}, 400, "invalid_value", "suffix"),
    ({"suffix": "a:b"}, 400, "invalid_value", "suffix"),
    ({"suffix": "a\n"}, 400, "invalid_value", "suffix"),
    ({"suffix": ".."}, 400, "invalid_value", "suffix"),
    ({"metadata": {str(number): "" for number in range(17)}}, 400, "invalid_value", "metadata"),
    ({"metadata": {"key": 3}}, 400, "invalid_value", "metadata.key"),
    ({"integrations": [{"type": "wandb"}]}, 400, "unsupported_integrations", "integrations"),
    ({"method": {"type": "dpo"}}, 400, "unsupported_method", "method.type"),
    ({"method": {"type": "reinforcement"}}, 400, "unsupported_method", "method.type"),
    ({"hyperparameters": {"n_epochs": 0}}, 400, "invalid_value", "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": 1.5}}, 400, "invalid_value", "hyperparameters.n_epochs"),
    ({"hyperparameters": {"batch_size": "many"}}, 400, "invalid_value", "hyperparameters.batch_size"),
    ({"hyperparameters": {"beta": 1}}, 400, "unknown_parameter", "hyperparameters.beta"),
    (
        {
            "hyperparameters": {"n_epochs": 2},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        },
        400,
        "conflicting_hyperparameters",
        "hyperparameters",
    ),
]


def test_bad_input_leaves_no_job(api: Api, rings: list[str], subtests: pytest.Subtests) -> None:
    for fields, status, code, param in _BAD_INPUT:
        with subtests.test(fields=fields):
            error = error_of(api.create(**fields), status)
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
            assert api.jobs() == 0
            assert rings == []


_WORDS = [
    ({"suffix": "x" * 70}, "suffix: 70 characters were given, at most 64 are allowed; shorten it by 6"),
    ({"suffix": ""}, "suffix: 0 characters were given, at least 1 are needed; or leave it out"),
    (
        {"suffix": "a b/../"},
        "suffix: letters from a to z, digits, '-', '_' and '.' are allowed, and not dots alone; got 'a b/../'",
    ),
    ({"typo": 1}, "typo: there is no such field; leave it out, or look for its name at /openapi.json"),
    ({"model": None}, "model: this field is required, and it was not given"),
    ({"seed": "many"}, "seed: Input should be a valid integer, unable to parse string as an integer (got 'many')"),
]


def test_refusals_say_what_was_got_what_was_wanted_and_what_to_do(api: Api, subtests: pytest.Subtests) -> None:
    for fields, message in _WORDS:
        with subtests.test(fields=fields):
            assert error_of(api.create(**fields), 400)["message"] == message


def test_text_that_utf8_cannot_carry_is_refused(api: Api) -> None:
    assert error_of(api.create(suffix="\ud800"), 400)["param"] == "suffix"
    error_of(api.create(**{"typo\ud800": 1}), 400)
    assert error_of(api.create(jenga={**SMALL, "lora": {"target_modules": ["\ud800"]}}), 400)["param"] == "jenga"
    error = error_of(api.create(jenga={**SMALL, "lora": {"target_modules": ["q_proj", "nope"]}}), 400)
    assert (error["param"], "'nope'" in error["message"]) == ("jenga.lora.target_modules", True)
    assert api.jobs() == 0


def test_too_long_a_context_names_both_lengths_and_the_remedy(api: Api) -> None:
    message = error_of(api.create(jenga={"context_length_tokens": 700}), 400)["message"]
    assert "700" in message
    assert "256 tokens" in message
    assert 'jenga.rope, e.g. {"type": "yarn", "factor": 3}' in message
    assert api.create(jenga={"context_length_tokens": 700, "rope": {"type": "yarn", "factor": 3}}).status_code == 200


def test_a_fine_tuned_model_is_not_trained_further(api: Api) -> None:
    assert "train its base model" in error_of(api.create(model="ft:model:team::abc"), 404)["message"]


def test_a_context_that_no_stretching_reaches_says_what_does(api: Api) -> None:
    error = error_of(api.create(jenga={"context_length_tokens": 256 * 64 + 1}), 400)
    assert error["message"].endswith("stretched positions reach 16384 at most (jenga.rope.factor 64)")


def test_learned_positions_are_not_stretched(api: Api) -> None:
    with api.database.writing() as session:
        session.get_one(BaseModelEntry, api.seeded.model).model_type = "opt"
    rope = {"type": "yarn", "factor": 3}
    error = error_of(api.create(jenga={"context_length_tokens": 700, "rope": rope}), 400)
    assert (error["code"], error["param"]) == ("invalid_config", "jenga.rope")
    error = error_of(api.create(jenga={"context_length_tokens": 700}), 400)
    assert error["code"] == "context_too_long"
    assert "rope" not in error["message"]
    assert api.jobs() == 0


@pytest.mark.parametrize("role", ["training_file", "validation_file"])
def test_a_file_with_a_wrong_row_leaves_no_job(api: Api, role: str) -> None:
    file_id = api.upload(b'{"text": "fine"}\n{"text": ""}\n').json()["id"]
    error = error_of(api.create(**{role: file_id}), 400)
    assert (error["code"], error["param"]) == (f"invalid_{role}", role)
    assert "Row 2: 'text' is empty" in error["message"]
    assert api.jobs() == 0


def test_a_file_of_another_purpose_leaves_no_job(api: Api) -> None:
    with api.database.writing() as session:
        session.get_one(StoredFile, api.seeded.training_file).purpose = "fine-tune-results"
    error = error_of(api.create(), 400)
    assert (error["code"], error["param"]) == ("invalid_training_file", "training_file")
    assert "'fine-tune-results'" in error["message"]
    assert api.jobs() == 0


@pytest.mark.parametrize("missing", ["model", "training_file"])
def test_a_missing_field_is_named(api: Api, missing: str) -> None:
    error = error_of(api.create(**{missing: None}), 400)
    assert (error["code"], error["param"]) == ("missing_required_parameter", missing)
    assert api.jobs() == 0

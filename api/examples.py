"""One example of every operation, for the OpenAPI description: what is sent, and what comes back.

tests/api/test_openapi.py holds each against the operation's own schema, and fails for an operation without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TEAM, _KEY, _FILE, _JOB = "org-9sG2mWq7", "5f1c0a7b9d2e", "file-Q8n2kXv4", "ftjob-4kVvLr2T"
_MODEL, _TUNED = "smollm2-135m", "ft:smollm2-135m:blue:contracts:4kVvLr2T"
_AT = 1_790_000_000
_SECRET = "jenga_5f1c0a7b9d2e_" + "…"
_UPLOAD, _PART, _WEBHOOK = "upload_7TqL0p3d", "part_c1Hj5s8Z", "we_2LfY6u9K"


@dataclass(frozen=True)
class Example:
    """Of one operation. None: there is no body, or it is no JSON."""

    response: Any
    request: Any = None


def _list(*data: Mapping[str, Any]) -> dict[str, Any]:
    ids = [item.get("id") for item in data]
    return {"object": "list", "data": list(data), "first_id": ids[0], "last_id": ids[-1], "has_more": False}


_file = {
    "id": _FILE,
    "object": "file",
    "bytes": 1_048_576,
    "created_at": _AT,
    "expires_at": None,
    "filename": "train.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "status_details": None,
}
_upload = {
    "id": _UPLOAD,
    "object": "upload",
    "bytes": 1_048_576,
    "created_at": _AT,
    "expires_at": _AT + 3600,
    "filename": "train.jsonl",
    "purpose": "fine-tune",
    "status": "pending",
    "file": None,
}
_hyperparameters = {"n_epochs": "auto", "batch_size": 2, "learning_rate_multiplier": "auto"}
_create_job = {
    "model": _MODEL,
    "training_file": _FILE,
    "suffix": "contracts",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 2}}},
    "metadata": {"project": "contracts"},
    "jenga": {"preset": "jenga", "keep_fraction": 0.4, "context_length_tokens": 2048},
}


def _job(**jenga: Any) -> dict[str, Any]:
    return {
        "id": _JOB,
        "object": "fine_tuning.job",
        "created_at": _AT,
        "finished_at": None,
        "estimated_finish": None,
        "model": _MODEL,
        "fine_tuned_model": None,
        "organization_id": _TEAM,
        "status": "running" if jenga["state"] in ("running", "cancelling") else "queued",
        "error": None,
        "training_file": _FILE,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": 81_920,
        "seed": 7,
        "hyperparameters": _hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": _hyperparameters}},
        "integrations": None,
        "metadata": {"project": "contracts"},
        "user_provided_suffix": "contracts",
        "jenga": {
            "stage": "finetune",
            "attempt": 1,
            "started_at": _AT + 5,
            "ran_seconds": 0.0,
            "stop_asked_at": None,
            "step": 20,
            "total_steps": 300,
            "config": {"preset": "jenga", "context_length_tokens": 2048},
            "report": None,
            "priority": 0,
            "gpus": 1,
            "oom_policy": "fail",
            "owner": "ci",
            "queue": None,
            "loss": {"train": 2.31, "held_out": 2.58},
            "memory": {
                "peak_bytes": 9_663_676_416,
                "activation_bytes": 2_147_483_648,
                "dense_activation_bytes": 5_368_709_120,
            },
            **jenga,
        },
    }


_queued = _job(
    state="queued",
    stage="validate",
    attempt=0,
    started_at=None,
    step=0,
    total_steps=None,
    loss=None,
    memory=None,
    queue={"position": 1, "reason": "next: its team has used the least device time lately (0 min)"},
)
_event = {
    "id": "ftevent-4kVvLr2T-5",
    "object": "fine_tuning.job.event",
    "created_at": _AT,
    "level": "info",
    "message": "Step 20/300: training loss=2.31",
    "type": "metrics",
    "data": {"step": 20, "train_loss": 2.31, "total_steps": 300},
}
_checkpoint = {
    "id": "ftckpt_8Rn3Vb6M",
    "object": "fine_tuning.job.checkpoint",
    "created_at": _AT,
    "fine_tuned_model_checkpoint": f"{_JOB}:ckpt-step-100",
    "fine_tuning_job_id": _JOB,
    "step_number": 100,
    "metrics": {"step": 100, "train_loss": 2.02},
}
_metric = {
    "step": 20,
    "train_loss": 2.31,
    "valid_loss": None,
    "learning_rate": 2e-4,
    "tokens_per_second": 5120.0,
    "created_at": float(_AT),
}
_memory = {
    "phase": "finetune",
    "states_bytes": 1_073_741_824,
    "activation_bytes": 2_147_483_648,
    "predictor_bytes": 1_048_576,
    "other_bytes": 536_870_912,
    "peak_bytes": 9_663_676_416,
    "device": "cuda",
    "created_at": float(_AT),
}
_selection = {
    "step": 20,
    "entry_layer": 2,
    "num_blocks": 32,
    "kept_fraction": [1.0, 1.0, 0.4, 0.4],
    "spans": [{"first_layer": 2, "last_layer": 3, "blocks": [0, 3, 4, 9, 11, 17, 18, 22, 25, 28, 29, 30, 31]}],
    "created_at": float(_AT),
}
_model = {"id": _TUNED, "object": "model", "created": _AT, "owned_by": _TEAM}
_predictor = {
    "id": "pred-6Zk1Ws4Q",
    "object": "predictor",
    "created_at": _AT,
    "base_model": _MODEL,
    "fingerprint": "9f2c…",
    "job_id": _JOB,
    "settings": {"layers": [15], "block_tokens": 64},
    "report": {"parameters": 180_000, "parameter_fraction": 0.0013, "layers": {"15": {"recall": 0.94}}},
}
_estimate = {
    "object": "fine_tuning.estimate",
    "valid": True,
    "errors": [],
    "rows": 1200,
    "rows_counted": 1200,
    "tokens": 2_400_000,
    "tokens_cut": 0,
    "sequences": 1310,
    "length_histogram": [{"from_tokens": 1025, "to_tokens": 2048, "rows": 1200}],
    "steps": 1965,
    "seconds": {"low": 1300.0, "expected": 1410.0, "high": 1600.0},
    "memory": [
        {
            "setting": "as asked",
            "low_bytes": 1_800_000_000,
            "expected_bytes": 2_000_000_000,
            "high_bytes": 2_300_000_000,
            "by_kind": {"weights": 270_000_000, "activations": 1_200_000_000, "loss": 530_000_000},
            "host_bytes": 0,
        }
    ],
    "devices": [
        {
            "id": "GPU-1c2d",
            "name": "NVIDIA L4",
            "memory_bytes": 24_146_608_128,
            "fits": True,
            "longest_context_tokens": 32_768,
        }
    ],
    "advice": None,
}
_fleet = {
    "object": "fleet",
    "workers": [
        {
            "id": "worker-3Jd8",
            "host": "gpu-1",
            "state": "online",
            "versions": {"torch": "2.11.0", "driver": "580.95"},
            "memory_bytes": 134_217_728_000,
            "heartbeat_at": _AT,
            "devices": [
                {
                    "id": "GPU-1c2d",
                    "kind": "cuda",
                    "name": "NVIDIA L4",
                    "memory_bytes": 24_146_608_128,
                    "memory_used_bytes": 9_663_676_416,
                    "held_by": {"job_id": _JOB, "team_id": _TEAM},
                    "foreign_processes": [],
                }
            ],
        }
    ],
    "queue": [{"job_id": None, "team_id": None, "position": 1, "reason": None}],
    "teams": [{"team_id": _TEAM, "name": "blue", "running": 1, "queued": 0, "gpu_seconds_decayed": 5400.0}],
}
_quotas = {"storage_bytes": 1_099_511_627_776, "queued_jobs": 100, "running_jobs": 4, "gpu_hours": 500.0}
_used = {"used": {"storage_bytes": 1_048_576, "queued_jobs": 0, "running_jobs": 1, "gpu_hours": 1.5}}
_team = {"id": _TEAM, "object": "team", "name": "blue", "created_at": _AT, "quotas": {**_quotas, **_used}}
_key = {
    "id": _KEY,
    "object": "api_key",
    "name": "ci",
    "team_id": _TEAM,
    "scopes": ["read", "write"],
    "created_at": _AT,
    "expires_at": _AT + 7_776_000,
    "last_used_at": _AT + 60,
    "revoked_at": None,
}
_me = {
    "object": "me",
    "team": {"id": _TEAM, "name": "blue"},
    "key": {"id": _KEY, "name": "ci", "scopes": ["read", "write"]},
    "quotas": {**_quotas, **_used},
}
_audit = {
    "id": "audit-0Xc7Ne2B",
    "object": "audit_entry",
    "created_at": _AT,
    "team_id": _TEAM,
    "key_id": _KEY,
    "action": "job.create",
    "object_id": _JOB,
    "request_id": "req_5Hs9Gd1A",
    "details": {"model": _MODEL, "training_file": _FILE},
}
_webhook = {
    "id": _WEBHOOK,
    "object": "webhook_endpoint",
    "created_at": _AT,
    "url": "https://hooks.example.com/jenga",
    "events": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
}

_jobs = "/v1/fine_tuning/jobs"
EXAMPLES: Mapping[tuple[str, str], Example] = {
    ("POST", "/v1/files"): Example(_file),
    ("GET", "/v1/files"): Example(_list(_file)),
    ("GET", "/v1/files/{file_id}"): Example(_file),
    ("DELETE", "/v1/files/{file_id}"): Example({"id": _FILE, "object": "file", "deleted": True}),
    ("GET", "/v1/files/{file_id}/content"): Example('{"text": "…"}\n'),
    ("POST", "/v1/uploads"): Example(
        _upload,
        {"bytes": 1_048_576, "filename": "train.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"},
    ),
    ("POST", "/v1/uploads/{upload_id}/parts"): Example(
        {"id": _PART, "object": "upload.part", "created_at": _AT, "upload_id": _UPLOAD}
    ),
    ("POST", "/v1/uploads/{upload_id}/complete"): Example(
        {**_upload, "status": "completed", "file": _file}, {"part_ids": [_PART]}
    ),
    ("POST", "/v1/uploads/{upload_id}/cancel"): Example({**_upload, "status": "cancelled"}),
    ("POST", _jobs): Example(_queued, _create_job),
    ("GET", _jobs): Example(_list(_job(state="running"))),
    ("GET", _jobs + "/{job_id}"): Example(_job(state="running")),
    ("POST", _jobs + "/{job_id}/cancel"): Example(_job(state="cancelling")),
    ("POST", _jobs + "/{job_id}/pause"): Example(_job(state="pausing")),
    ("POST", _jobs + "/{job_id}/resume"): Example(_job(state="queued")),
    ("POST", _jobs + "/{job_id}/stop"): Example(_job(state="running")),
    ("GET", _jobs + "/{job_id}/events"): Example(_list(_event)),
    ("GET", _jobs + "/{job_id}/checkpoints"): Example(_list(_checkpoint)),
    ("GET", _jobs + "/{job_id}/metrics"): Example(_list(_metric)),
    ("GET", _jobs + "/{job_id}/memory"): Example(_list(_memory)),
    ("GET", _jobs + "/{job_id}/selection"): Example(_list(_selection)),
    ("POST", "/v1/fine_tuning/estimates"): Example(_estimate, _create_job),
    ("GET", "/v1/models"): Example(_list(_model)),
    ("GET", "/v1/models/{model}"): Example(_model),
    ("DELETE", "/v1/models/{model}"): Example({"id": _TUNED, "object": "model", "deleted": True}),
    ("GET", "/v1/predictors"): Example(_list(_predictor)),
    ("GET", "/v1/fleet"): Example(_fleet),
    ("GET", "/v1/webhooks"): Example(_list(_webhook)),
    ("POST", "/v1/webhooks"): Example(
        {**_webhook, "secret": "whsec_…"}, {"url": "https://hooks.example.com/jenga", "events": _webhook["events"]}
    ),
    ("GET", "/v1/webhooks/{webhook_id}"): Example(_webhook),
    ("DELETE", "/v1/webhooks/{webhook_id}"): Example({"id": _WEBHOOK, "object": "webhook_endpoint", "deleted": True}),
    ("GET", "/v1/me"): Example(_me),
    ("GET", "/v1/keys"): Example(_list(_key)),
    ("POST", "/v1/keys"): Example({**_key, "secret": _SECRET}, {"name": "ci", "scopes": ["read", "write"]}),
    ("DELETE", "/v1/keys/{key_id}"): Example({**_key, "revoked_at": _AT + 120}),
    ("GET", "/v1/teams"): Example(_list(_team)),
    ("POST", "/v1/teams"): Example(_team, {"name": "blue", "quotas": _quotas}),
    ("POST", "/v1/teams/{team_id}"): Example(_team, {"quotas": _quotas}),
    ("GET", "/v1/audit"): Example(_list(_audit)),
    ("GET", "/healthz"): Example({"status": "ok"}),
    ("GET", "/readyz"): Example({"status": "ok", "database": "ok", "files": "ok"}),
    ("GET", "/metrics"): Example('jenga_jobs{state="queued"} 3.0\n'),
}
"""By method and path."""

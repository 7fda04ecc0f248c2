"""A team in the middle of its work, for screenshots: many jobs on several GPUs, predictors, files, keys, a second team.

Every number is made here, by formulas that look like training; nothing is measured. They agree with each other: time
with speed, loss with report, memory with what the estimate says of an H100. Rows are the same on every run, but for the
times, which are counted back from now.
"""

from __future__ import annotations

import json
import math
import random
import time
from typing import Any

from sqlalchemy.orm import Session

from jenga_core.config import JengaConfig
from jenga_core.service.accounts.keys import Scope, create_key
from jenga_core.service.accounts.teams import create_team
from jenga_core.service.db.models import (
    BaseModelEntry,
    Device,
    DeviceLease,
    Job,
    JobEvent,
    JobMemory,
    JobMetric,
    JobRequest,
    JobSelection,
    PredictorEntry,
    StoredFile,
    Team,
    TeamUsage,
    Worker,
)
from jenga_core.service.files.store import FileStore
from jenga_core.service.settings import Settings
from tests.web import base_models

MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "llama-3-8b": (base_models.LLAMA_3_8B, 8_030_261_248),
    "smollm2-135m": (base_models.SMOLLM2_135M, 134_515_008),
}
ENTRY_LAYER = 19
"""Three fifths of Llama-3-8B's 32 layers."""

GPU_BYTES = 80 * 2**30
HYPERPARAMETERS = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}
CLAUSE = "Whereas the parties agree, "
TOKENS_PER_STEP = 16 * 2_600
"""16 accumulated documents, as long as those of the training file are on average."""

SPEED = {("jenga", 0.4): 9_800, ("jenga", 0.25): 11_300, ("jenga-paper", 0.4): 6_400, ("lora", 0.4): 5_100}
"""Tokens per second, by preset and share kept."""

ACTIVATIONS = {("jenga", 0.4): 11.4e9, ("jenga", 0.25): 7.6e9, ("jenga-paper", 0.4): 19.9e9, ("lora", 0.4): 49.5e9}
STATES, OTHER = 16_200_000_000, 600_000_000
"""Bytes."""

WAIT_SECONDS, SETUP_SECONDS, PUBLISH_SECONDS = 20, 360, 60
LOSS_BEFORE = 2.331
LONGEST = 90_112
OUT_OF_MEMORY = (
    "out of memory: predicted 75.4 GiB (71.0 to 81.3), measured 78.6 GiB when it failed, the GPU has 80.0 GiB; "
    f"recompute='mlp' would need less. out of memory on cuda:0 with context_length_tokens {LONGEST} and keep_fraction "
    "0.4; a shorter context, a smaller keep_fraction or batch_size 1 needs less: CUDA out of memory. Tried to allocate "
    "2.10 GiB."
)
JOBS: tuple[dict[str, Any], ...] = (
    {"name": "contracts", "state": "running", "stage": "finetune", "step": 412, "total": 900},
    {"name": "papers", "state": "running", "stage": "finetune", "step": 128, "total": 600, "keep": 0.25},
    {"name": "minutes", "state": "running", "stage": "train_predictors", "minutes": 4},
    {"name": "tickets", "state": "queued", "stage": "validate", "minutes": 12},
    {"name": "filings", "state": "queued", "stage": "validate", "minutes": 9, "gpus": 4},
    {"name": "manuals", "state": "paused", "stage": "finetune", "step": 210, "total": 500, "minutes": 200},
    {"name": "contracts-dense", "state": "succeeded", "stage": "publish", "step": 300, "total": 300, "minutes": 420,
     "preset": "lora"},
    {"name": "contracts-40", "state": "succeeded", "stage": "publish", "step": 300, "total": 300, "minutes": 520},
    {"name": "contracts-25", "state": "succeeded", "stage": "publish", "step": 300, "total": 300, "minutes": 640,
     "keep": 0.25},
    {"name": "contracts-paper", "state": "succeeded", "stage": "publish", "step": 300, "total": 300, "minutes": 800,
     "preset": "jenga-paper"},
    {"name": "long", "state": "failed", "stage": "finetune", "total": 400, "minutes": 1000, "context": LONGEST},
    {"name": "oops", "state": "cancelled", "stage": "finetune", "step": 40, "total": 900, "minutes": 1500},
)  # fmt: skip


def job_id(name: str) -> str:
    """The id of a job of the gallery."""
    return f"ftjob-{random.Random(name).randbytes(9).hex()}"


def fill(session: Session, settings: Settings, team: Team, key_id: str) -> None:
    """Insert everything for this team, whose jobs the key asked for."""
    now = time.time()
    for name, (config, parameters) in MODELS.items():
        base_models.write(settings, name, config)
        session.add(BaseModelEntry(
            id=name, source="gallery", folder=name, model_type="llama", num_hidden_layers=config["num_hidden_layers"],
            context_length_tokens=config["max_position_embeddings"], parameters=parameters, fingerprint="0" * 64,
            created_at=now - 9e5,
        ))  # fmt: skip
    for file_id, rows in (("file-train", 1800), ("file-heldout", 60)):
        _file(session, settings, team, file_id, rows, now)
    session.flush()
    for about in JOBS:
        _job(session, team, key_id, about, now)
    _predictors(session, team, now)
    _fleet(session, team, now)
    for name, scopes in (("ci", [Scope.READ, Scope.WRITE]), ("dashboard", [Scope.READ])):
        create_key(session, team, name, pepper=settings.pepper, scopes=scopes)


def _file(session: Session, settings: Settings, team: Team, file_id: str, rows: int, now: float) -> None:
    lengths = random.Random(rows)
    texts = (f"Document {number}. " + CLAUSE * int(lengths.lognormvariate(4, 1.1)) for number in range(rows))
    data = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    with FileStore(settings).writing(file_id) as file:
        file.write(data)
    session.add(StoredFile(
        id=file_id, team_id=team.id, purpose="fine-tune", filename=f"{file_id.removeprefix('file-')}.jsonl",
        bytes=len(data), rows=rows, status="processed", created_at=now - 9e4,
    ))  # fmt: skip


def _job(session: Session, team: Team, key_id: str, about: dict[str, Any], now: float) -> None:
    name, state, step = about["name"], about["state"], about.get("step", 0)
    preset, keep = about.get("preset", "jenga"), about.get("keep", 0.4)
    given = {"keep_fraction": keep} if preset == "jenga" else {}
    config = JengaConfig.preset(
        preset, context_length_tokens=about.get("context", 16_384), max_steps=about.get("total"),
        gradient_accumulation_steps=16, **given,
    )  # fmt: skip
    trained_seconds = SETUP_SECONDS + step * TOKENS_PER_STEP / SPEED[preset, keep]
    created = now - (60 * about["minutes"] if "minutes" in about else trained_seconds)
    ended = state in ("succeeded", "failed", "cancelled")
    started, finished = created + WAIT_SECONDS, created + trained_seconds + PUBLISH_SECONDS
    job = Job(
        id=job_id(name), team_id=team.id, model="llama-3-8b", training_file="file-train", suffix=name, seed=42,
        validation_file="file-heldout", hyperparameters=dict(HYPERPARAMETERS),
        config=config.model_dump(mode="json"), created_at=created, state=state, stage=about["stage"], step=step,
        total_steps=about.get("total"), attempt=0 if state == "queued" else 1,
        started_at=None if state == "queued" else started,
        gpu_seconds=0.0 if state in ("queued", "running") else finished - started,
        gpus=about.get("gpus", 1), trained_tokens=step * TOKENS_PER_STEP or None, result_files=[],
        finished_at=finished if ended else None,
    )  # fmt: skip
    session.add(job)
    session.flush()
    session.add(JobRequest(job_id=job.id, key_id=key_id, body_sha256="-", created_at=created))
    events = ["Created fine-tuning job"] + [
        f"Stage {stage} began" for stage in ("validate", "prepare", "calibrate", "train_predictors", "finetune")
    ]
    if state == "queued":
        events = events[:1]
    if state == "failed":
        job.error = {"code": "out_of_memory", "param": None, "message": OUT_OF_MEMORY}
        events.append(job.error["message"])
    if preset == "jenga-paper":
        job.report = {"thresholds": {str(layer): 0.4 * math.exp(-layer / 11) for layer in range(32)}}
    if state == "succeeded":
        job.fine_tuned_model = f"ft:llama-3-8b:{team.name}:{name}"
        job.report = {**_report(keep, preset), **(job.report or {})}
    if step:
        _training(session, job, preset, keep)
    for seq, message in enumerate(events, start=1):
        level = "error" if job.error and message == job.error["message"] else "info"
        session.add(JobEvent(job_id=job.id, seq=seq, level=level, type="message", message=message,
                             created_at=created + 15 * seq))  # fmt: skip
    job.event_seq = len(events)


def _loss(preset: str, keep: float, step: int) -> float:
    """Of the held-out windows, the same for all; every job begins with the same model."""
    floor = {"jenga": 1.88 + 0.05 * (0.4 - keep), "jenga-paper": 1.95, "lora": 1.86}[preset]
    return floor + (LOSS_BEFORE - floor) * math.exp(-step / 70)


def _report(keep: float, preset: str) -> dict[str, Any]:
    def held_out(step: int) -> dict[str, Any]:
        loss = _loss(preset, keep, step)
        return {"loss": loss, "perplexity": math.exp(loss), "tokens": 157_000}

    layers = {str(ENTRY_LAYER): {"recall": 0.957, "precision": 0.957, "chance": keep}}
    if preset == "jenga-paper":
        layers = {str(layer): {"recall": 0.97 - 0.002 * layer, "precision": 0.9, "chance": 0.4} for layer in range(32)}
    return {
        "score": "predicted",
        "entry_layer": {"jenga": ENTRY_LAYER, "jenga-paper": 0}.get(preset),
        "predictors": None if preset == "lora" else {"layers": layers},
        "held_out_before": held_out(0),
        "held_out_after": held_out(300),
        "training_rows": 1800,
        "warnings": [],
    }


def _training(session: Session, job: Job, preset: str, keep: float) -> None:
    random_numbers = random.Random(job.id)
    speed = SPEED[preset, keep]
    for phase, method in (("dense_reference", ("lora", 0.4)), ("finetune", (preset, keep))):
        activations = int(ACTIVATIONS[method])
        predictor = {"lora": 0, "jenga": 11_000_000, "jenga-paper": 348_000_000}[method[0]]
        session.add(JobMemory(
            job_id=job.id, phase=phase, states_bytes=STATES, activation_bytes=activations, predictor_bytes=predictor,
            other_bytes=OTHER, peak_bytes=STATES + activations + predictor + OTHER, device="cuda:0",
            created_at=job.created_at,
        ))  # fmt: skip
    for step in range(job.step + 1):
        loss = _loss(preset, keep, step)
        held_out = step % 50 == 0 or step == job.step
        session.add(JobMetric(
            job_id=job.id, step=step, train_loss=loss + random_numbers.gauss(-0.02, 0.045) if step else None,
            valid_loss=loss if held_out else None, learning_rate=2e-4 if step else None,
            tokens_per_second=speed * random_numbers.uniform(0.95, 1.05) if step else None,
            created_at=job.created_at + SETUP_SECONDS + step * TOKENS_PER_STEP / speed,
        ))  # fmt: skip
        if preset != "lora" and step and step % max(job.step // 60, 1) == 0:
            _selection(session, job, step, preset, keep)


def _selection(session: Session, job: Job, step: int, preset: str, keep: float) -> None:
    """128 blocks: a few that always matter, clusters that drift, the end of the document."""
    blocks, layers = 128, 32

    def chosen(layer: int) -> list[int]:
        noise = random.Random(f"{job.id} {step} {layer}")
        score = [
            2.0 * (block < 2) + 1.4 * math.exp(-((block - 34 - step / 18) ** 2) / 160)
            + 1.2 * math.exp(-((block - 88 + layer / 3) ** 2) / 220) + 0.8 * block / blocks + noise.random()
            for block in range(blocks)
        ]  # fmt: skip
        count = math.ceil(blocks * (keep if preset == "jenga" else 0.75 - 0.015 * layer))
        return sorted(sorted(range(blocks), key=lambda block: -score[block])[:count])

    spans = (
        [{"first_layer": 0, "last_layer": layers - 1, "blocks": chosen(0)}]
        if preset == "jenga"
        else [{"first_layer": layer, "last_layer": layer, "blocks": chosen(layer)} for layer in range(layers)]
    )
    shares = [len(span["blocks"]) / blocks for span in spans] * (layers if len(spans) == 1 else 1)
    session.add(JobSelection(
        job_id=job.id, step=step, num_blocks=blocks, kept_fraction={"layers": shares},
        kept_blocks={"entry_layer": ENTRY_LAYER if preset == "jenga" else 0, "spans": spans},
        created_at=job.created_at + step,
    ))  # fmt: skip


def _predictors(session: Session, team: Team, now: float) -> None:
    for number, (name, layers) in enumerate((("contracts-40", [ENTRY_LAYER]), ("contracts-paper", list(range(32))))):
        recall = {str(layer): {"recall": 0.972 - 0.003 * layer % 0.09, "precision": 0.93, "recent": 0.5, "chance": 0.4}
                  for layer in layers}  # fmt: skip
        session.add(PredictorEntry(
            id=f"predictor-{number}a41c", team_id=team.id, base_model="llama-3-8b", fingerprint="0" * 64,
            folder=f"gallery-{number}", job_id=job_id(name),
            settings={"block_tokens": 64, "layers": layers, "rank": 32},
            report={"parameters": 1_220_000 * len(layers), "parameter_fraction": 0.00015 * len(layers),
                    "layers": recall},
            created_at=now - 40_000 + number,
        ))  # fmt: skip


def _fleet(session: Session, team: Team, now: float) -> None:
    other = create_team(session, "vision")
    session.flush()
    holders = [job_id("contracts"), job_id("papers"), job_id("minutes"), None]
    versions = {"torch": "2.11.0", "triton": "3.6.0", "driver": "580.95"}
    for host, first in (("gpu-a", 0), ("gpu-b", 2)):
        worker = Worker(id=f"worker-{host}", host=host, pid=4711, versions=versions, started_at=now - 4e5,
                        heartbeat_at=now + 3600, draining=False)  # fmt: skip
        session.add(worker)
        session.flush()
        for index in (first, first + 1):
            foreign = [{"pid": 90122, "name": "python", "memory_bytes": 11_000_000_000}] if index == 3 else []
            session.add(Device(
                uuid=f"GPU-{index}0f3e", worker_id=worker.id, kind="cuda", name="NVIDIA H100 80GB HBM3",
                memory_bytes=GPU_BYTES, memory_used_bytes=[28, 24, 19, 11][index] * 10**9, foreign_processes=foreign,
            ))  # fmt: skip
            session.flush()
            if holders[index]:
                session.add(
                    DeviceLease(device_uuid=f"GPU-{index}0f3e", job_id=holders[index], token="-", since=now - 900)
                )
    session.add(TeamUsage(team_id=team.id, gpu_seconds=412_000, as_of=now))
    session.add(TeamUsage(team_id=other.id, gpu_seconds=187_000, as_of=now))

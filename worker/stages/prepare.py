"""Text to token ids, the plan of the run, and the model: adapted, patched, on its device."""

from __future__ import annotations

import math

from transformers import set_seed

from jenga_core.config import JengaConfig
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.finetuning.data import Encoded, encode_file
from jenga_core.finetuning.pretrained import load_model
from jenga_core.finetuning.trainer import make_plan
from jenga_core.patching.apply import apply_jenga
from worker.protocol import PlanMessage
from worker.training_job import TrainingJob


def run(job: TrainingJob) -> None:
    """Leaves training, validation, plan, model and handle."""
    spec = job.spec
    assert job.tokenizer is not None
    job.training = encode_file(
        spec.training_path,
        job.tokenizer,
        context_length_tokens=spec.config.context_length_tokens,
        cache_folder=job.cache_folder / "training",
    )
    _describe(job, "Training", job.training)
    if spec.validation_path is not None:
        job.validation = encode_file(
            spec.validation_path,
            job.tokenizer,
            context_length_tokens=spec.config.context_length_tokens,
            cache_folder=job.cache_folder / "validation",
        )
        _describe(job, "Validation", job.validation)

    of_each_rank = math.ceil(len(job.training.sequences) / job.ranks.size)
    job.plan = make_plan(spec.config, spec.hyperparameters, num_sequences=of_each_rank)
    job.reporter.send(PlanMessage(total_steps=job.plan.total_steps, hyperparameters=job.plan.hyperparameters()))

    set_seed(spec.seed)
    model = load_model(spec.model_folder, spec.config, job.device)
    job.model = add_adapter(model, spec.config.lora)
    job.handle = apply_jenga(job.model, without_predictors(spec.config))
    method = f"jenga, selecting from layer {job.handle.entry_layer} on" if spec.config.enabled else "dense LoRA"
    if spec.config.attention_group_tokens is not None:
        method += f", attention in groups of {spec.config.attention_group_tokens} tokens"
    devices = str(job.device) if job.ranks.size == 1 else f"{job.ranks.size} devices, a share of the data each"
    job.reporter.event(f"Model {spec.model_name} on {devices}: {method}")


def without_predictors(config: JengaConfig) -> JengaConfig:
    """The config until the train_predictors stage: `predicted` is asked for, but nothing can predict yet."""
    if config.selection.score != "predicted":
        return config
    return config.model_copy(update={"selection": config.selection.model_copy(update={"score": "auto"})})


def _describe(job: TrainingJob, name: str, encoded: Encoded) -> None:
    job.reporter.event(
        f"{name} file: {encoded.rows} rows, {len(encoded.sequences)} sequences, {encoded.tokens} tokens, "
        f"{encoded.label_tokens} with loss"
    )
    if encoded.cut_rows:
        job.warn(
            f"{name} file: {encoded.cut_rows} chat or completion rows are longer than "
            f"{job.spec.config.context_length_tokens} tokens and were cut at the end"
        )
    if encoded.dropped_rows:
        job.warn(f"{name} file: {encoded.dropped_rows} rows were dropped; nothing to learn from was left in them")

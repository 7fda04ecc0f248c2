"""The policies that the quality benchmarks compare, and one fine-tuning run under any of them.

A policy is a JengaConfig, and sometimes more than that: `loss_of` makes a control, dense training whose loss is taken
on exactly the tokens that another policy chooses; `anneal` moves the keep fraction over the steps.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from jenga_core.config import JengaConfig
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.finetuning.data import Encoded, collator
from jenga_core.finetuning.predictors import train_predictors
from jenga_core.finetuning.pretrained import load_model, load_tokenizer, training_device
from jenga_core.finetuning.thresholds import calibrate
from jenga_core.finetuning.trainer import finetune, make_plan
from jenga_core.loss.segmented_cross_entropy import IGNORE
from jenga_core.memory.accounting import peak_bytes, reset_peak
from jenga_core.patching.apply import JengaHandle, apply_jenga


@dataclass(frozen=True)
class Policy:
    """How a run is trained; what it does not say is the preset's and the command line's."""

    selection: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "jenga"
    entry: tuple[int, int] | None = None
    """The entry layer as a share of the layers; None: the default."""

    loss_of: str | None = None
    """Train densely, with the loss on the tokens that this policy would choose."""

    anneal: tuple[float, float] | None = None
    """The keep fraction goes from the first to the second in a straight line, in units of the command line's."""

    dense_at_end_fraction: float = 0.0
    """The last steps, as a share of all, are dense."""


EXACT = {"score": "exact"}
ALONE = {**EXACT, "target_fraction": 0.0, "asked_by": "all"}
"""Scores alone decide, and all blocks ask: what the paper's scores choose."""

POLICIES: Mapping[str, Policy] = {
    "base": Policy(preset="lora"),
    "dense": Policy(preset="lora"),
    "longlora": Policy(preset="longlora"),
    "jenga": Policy(EXACT),
    "jenga-predicted": Policy({"score": "predicted"}),
    "jenga-random": Policy({"score": "random"}),
    "jenga-recent": Policy({"score": "recent"}),
    "jenga-mean": Policy({**EXACT, "column": "mean"}),
    "targets-25": Policy({**EXACT, "target_fraction": 0.25}),
    "targets-75": Policy({**EXACT, "target_fraction": 0.75}),
    "targets-100": Policy({**EXACT, "target_fraction": 1.0}),
    "blocks-128": Policy({**EXACT, "block_tokens": 128}),
    "blocks-256": Policy({**EXACT, "block_tokens": 256}),
    "half": Policy(EXACT, entry=(1, 2)),
    "half-mean": Policy({**EXACT, "column": "mean"}, entry=(1, 2)),
    "two-thirds": Policy(EXACT, entry=(2, 3)),
    "three-quarters-mean": Policy({**EXACT, "column": "mean"}, entry=(3, 4)),
    "scores-alone": Policy(ALONE),
    "random-alone": Policy({**ALONE, "score": "random"}),
    "recent-alone": Policy({**ALONE, "score": "recent"}),
    "random-tokens-alone": Policy({**ALONE, "score": "random", "block_tokens": 1}),
    "annealed": Policy(EXACT, anneal=(0.5, 1.5)),
    "annealed-down": Policy(EXACT, anneal=(1.5, 0.5)),
    "dense-at-end": Policy(EXACT, dense_at_end_fraction=0.1),
    "dense-same-loss": Policy(EXACT, loss_of="jenga"),
    "dense-same-loss-run": Policy({**EXACT, "target_fraction": 1.0}, loss_of="targets-100"),
    "dense-same-loss-random": Policy({**ALONE, "score": "random"}, loss_of="random-alone"),
    "dense-same-loss-random-tokens": Policy(
        {**ALONE, "score": "random", "block_tokens": 1}, loss_of="random-tokens-alone"
    ),
    "carried": Policy({**EXACT, "below_entry": "involved"}),
    "gradient-only": Policy({**EXACT, "unselected": "forward_only"}),
    "paper": Policy(EXACT, preset="jenga-paper"),
    "equal-time": Policy(preset="lora"),
}
"""`equal-time` is dense training for fewer steps, as many as the checkpointed step fits into the sparse run's time."""


@dataclass(frozen=True)
class Setting:
    """One run, but for the policy."""

    model: Path
    context: int
    steps: int
    keep_fraction: float
    learning_rate: float
    scratch: Path
    extra: Mapping[str, Any]
    """More JengaConfig fields; what a policy says wins."""


@dataclass
class Trained:
    """A model after its run, and what the run took."""

    model: Any
    handle: JengaHandle
    config: JengaConfig
    peak_bytes: int
    step_seconds: list[float]
    losses: list[float]
    recall: dict[int, float] | None

    def row(self) -> dict[str, Any]:
        """Its part of a row in a results file."""
        report = self.handle.report()
        return {
            "entry_layer": self.handle.entry_layer if self.config.enabled else None,
            "mean_kept_fraction": statistics.mean(report.kept_fraction) if report.kept_fraction else 1.0,
            "step_ms_median": 1000 * statistics.median(self.step_seconds) if self.step_seconds else None,
            "peak_bytes": self.peak_bytes,
            "train_loss_last_20": statistics.mean(self.losses[-20:]) if self.losses else None,
            "predictor_recall": self.recall,
            "config": self.config.model_dump(mode="json"),
        }


def train(
    policy_name: str,
    setting: Setting,
    sequences: Sequence[dict[str, Any]],
    *,
    seed: int,
    own_context: int,
    look: Callable[[JengaHandle], None],
) -> Trained:
    """Load the model afresh, put an adapter on it and train it under the policy.

    Args:
        own_context: the model's own longest sequence; a longer context stretches its positions linearly.
        look: called before the first step, with the model as it is.
    """
    policy, device = POLICIES[policy_name], training_device()
    config = config_of(policy, setting, own_context=own_context)
    set_seed(seed)
    model = load_model(setting.model, config, device)
    if policy.entry is not None:
        config = _with_entry_layer(config, len(model.get_decoder().layers) * policy.entry[0] // policy.entry[1])
    adapted = add_adapter(model, config.lora)
    collate = collator(load_tokenizer(setting.model))
    handle, recall = _patched(adapted, config, sequences, collate, seed)
    look(handle)
    clock = _Clock(_between_steps(policy, handle, setting))
    reset_peak(device)
    if setting.steps:
        with _loss_of_the_selection(handle) if policy.loss_of else _nothing():
            finetune(
                adapted,
                Encoded(list(sequences), len(sequences), 0, 0, 0, 0),  # type: ignore[arg-type]  # a list serves
                collate,
                config,
                make_plan(config, {}, num_sequences=len(sequences)),
                seed=seed,
                checkpoint_folder=setting.scratch / f"{policy_name}-{seed}-{setting.context}",
                watcher=clock,
            )
    return Trained(adapted, handle, config, peak_bytes(device), clock.step_seconds(), clock.losses, recall)


def config_of(policy: Policy, setting: Setting, *, own_context: int) -> JengaConfig:
    """The policy's JengaConfig in this setting, but for an entry layer that is a share."""
    stretch = {"rope": {"type": "linear", "factor": setting.context / own_context}}
    return JengaConfig.parse(
        {
            "preset": policy.preset,
            "context_length_tokens": setting.context,
            "max_steps": max(setting.steps, 1),
            "learning_rate": setting.learning_rate,
            "checkpoint_steps": 1_000_000,
            **(stretch if setting.context > own_context else {}),
            **({"cuda_graph": False} if policy.loss_of else {}),  # there a step is more than the model's forward
            **setting.extra,
            "selection": {
                "keep_fraction": setting.keep_fraction,
                **setting.extra.get("selection", {}),
                **policy.selection,
            },
        }
    )


def _with_entry_layer(config: JengaConfig, layer: int) -> JengaConfig:
    values = config.model_dump()
    values["selection"]["entry_layer"] = layer
    return JengaConfig.model_validate(values)


def _patched(
    adapted: Any, config: JengaConfig, sequences: Sequence[dict[str, Any]], collate: Any, seed: int
) -> tuple[JengaHandle, dict[int, float] | None]:
    """The handle, with predictors or thresholds where the config asks for them."""
    if config.enabled and config.selection.score == "predicted":
        return with_predictors(adapted, config, sequences, collate, seed)
    handle = apply_jenga(adapted, config)
    if config.enabled and config.selection.by == "threshold":
        chosen = [sequences[index * len(sequences) // config.calibration.samples] for index in
                  range(config.calibration.samples)]  # fmt: skip
        calibrate(handle, [collate([sequence]) for sequence in chosen], config.calibration)
    return handle, None


def with_predictors(
    model: Any, config: JengaConfig, sequences: Sequence[dict[str, Any]], collate: Any, seed: int
) -> tuple[JengaHandle, dict[int, float]]:
    """The handle of a config that asks for predicted scores, with predictors of these sequences, and their recall."""
    exact = config.model_copy(update={"selection": config.selection.model_copy(update={"score": "exact"})})
    handle = apply_jenga(model, exact)
    predictors, reports = train_predictors(handle, sequences, collate, seed=seed)
    handle.undo()
    return apply_jenga(model, config, predictors), {layer: report.recall for layer, report in reports.items()}


def _between_steps(policy: Policy, handle: JengaHandle, setting: Setting) -> Callable[[int], None]:
    """What changes before step `done` + 1."""
    selection = handle.config.selection

    def prepare(done: int) -> None:
        keep_fraction = selection.keep_fraction
        if policy.anneal is not None:
            first, last = policy.anneal
            keep_fraction *= first + (last - first) * done / max(setting.steps - 1, 1)
        if done >= setting.steps * (1 - policy.dense_at_end_fraction) and policy.dense_at_end_fraction:
            keep_fraction = 1.0
        if keep_fraction != handle.config.selection.keep_fraction:
            changed = selection.model_copy(update={"keep_fraction": min(keep_fraction, 1.0)})
            handle.config = handle.config.model_copy(update={"selection": changed})

    return prepare


@contextmanager
def _loss_of_the_selection(handle: JengaHandle) -> Iterator[None]:
    """While the block runs, training is dense, with labels on the selection's tokens alone."""
    causal_lm = handle.parts.causal_lm
    patched = causal_lm.forward

    @functools.wraps(patched)  # the Trainer asks a forward for its arguments
    def dense(**given: Any) -> Any:
        if not causal_lm.training:
            return patched(**given)
        with torch.no_grad():
            _, involvement = handle.run(given, handle.config.selection)
        kept_BN = involvement.selections[max(involvement.selections)].kept_BN
        block_BT = involvement.blocks.block_of_token_BT
        kept_BT = kept_BN.gather(1, block_BT.clamp(min=0)) & (block_BT >= 0)
        labels = involvement.targets_BT.masked_fill(~kept_BT, IGNORE).roll(1, dims=1)
        with handle.disabled():
            return patched(**{**given, "labels": labels, "num_items_in_batch": None})

    causal_lm.forward = dense
    try:
        yield
    finally:
        causal_lm.forward = patched


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class _Clock:
    """A finetuning Watcher that remembers the loss and the time of each step, and prepares the next."""

    def __init__(self, prepare: Callable[[int], None]) -> None:
        self.prepare = prepare
        self.at: list[float] = [time.perf_counter()]
        self.losses: list[float] = []
        prepare(0)

    def step_done(self, step: int, *, train_loss: float, **_: Any) -> None:
        self.at.append(time.perf_counter())
        self.losses.append(train_loss)
        self.prepare(step)

    def checkpoint_saved(self, step: int, folder: Path) -> None:
        pass

    def save_state(self, folder: Path) -> None:
        pass

    def should_stop(self) -> bool:
        return False

    def step_seconds(self) -> list[float]:
        """Of all but the first two."""
        return [later - earlier for earlier, later in zip(self.at[2:], self.at[3:], strict=False)]

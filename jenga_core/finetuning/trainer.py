"""The training run: transformers' Trainer on an adapted model, with Jenga's loss inside the model.

Schedules, accumulation, clipping, the content of checkpoints and resuming are the Trainer's. Ours are the defaults
(those of the quality runs), one measurement of the activations that a real step saves, checkpoints that are whole or
not there (checkpoints.py), and a small interface for whoever watches.

    AdamW, betas 0.9 / 0.95, no weight decay; warm-up over min(20, a tenth) of the steps, cosine down to 10 %; clip at
    1.0
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jenga_core.config import JengaConfig
from jenga_core.finetuning import checkpoints
from jenga_core.finetuning.captured_steps import Batch, CapturedSteps
from jenga_core.finetuning.data import Encoded, PadRight
from jenga_core.finetuning.dense_reference import DenseReference, measure_dense
from jenga_core.finetuning.parallel import ALONE, Ranks
from jenga_core.memory.accounting import reset_peak, saved_activations
from jenga_core.patching.apply import handle_of

DEFAULT_LEARNING_RATE = 2e-4
DEFAULT_EPOCHS = 3


@dataclass(frozen=True)
class Plan:
    """What will be run, with every "auto" resolved."""

    batch_size: int
    learning_rate: float
    learning_rate_multiplier: float
    n_epochs: int
    total_steps: int

    def hyperparameters(self) -> dict[str, Any]:
        """In OpenAI's words."""
        return {
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.learning_rate_multiplier,
            "n_epochs": self.n_epochs,
        }


def make_plan(config: JengaConfig, hyperparameters: dict[str, Any], *, num_sequences: int) -> Plan:
    """Resolve OpenAI's "auto": batch size 1, multiplier 1, 3 epochs; `max_steps` and `learning_rate` win over both."""

    def given(name: str, default: Any) -> Any:
        value = hyperparameters.get(name, "auto")
        return default if value == "auto" else value

    batch_size = int(given("batch_size", 1))
    multiplier = float(given("learning_rate_multiplier", 1.0))
    steps_per_epoch = math.ceil(num_sequences / (batch_size * config.gradient_accumulation_steps))
    epochs = int(given("n_epochs", DEFAULT_EPOCHS))
    if config.max_steps is not None:
        epochs = math.ceil(config.max_steps / steps_per_epoch)
    return Plan(
        batch_size=batch_size,
        learning_rate=config.learning_rate or DEFAULT_LEARNING_RATE * multiplier,
        learning_rate_multiplier=multiplier,
        n_epochs=epochs,
        total_steps=config.max_steps or steps_per_epoch * epochs,
    )


class Watcher(Protocol):
    """Told about the run as it goes; called in the training process, between steps but where it says otherwise."""

    def memory_measured(self, activation_bytes: int, dense: DenseReference) -> None:
        """If asked, within the first step: what its first micro-batch saves for backward, and what it takes densely."""

    def step_done(
        self, step: int, *, train_loss: float, learning_rate: float, tokens_per_second: float, trained_tokens: int
    ) -> None:
        """An optimizer step is done. train_loss: nats per kept label."""

    def checkpoint_saved(self, step: int, folder: Path) -> None:
        """A checkpoint is complete on disk."""

    def save_state(self, folder: Path) -> None:
        """Write what else a resumed run must find into the folder of a checkpoint in the making."""

    def should_stop(self) -> bool:
        """True ends the run after this step, with a checkpoint to go on from; a resumed run may end at once."""


@dataclass(frozen=True)
class Finished:
    """How the run ended."""

    stopped_at_step: int
    trained_tokens: int
    has_trained: bool
    """False where a resumed run found nothing left to do."""

    optimizer: torch.optim.Optimizer
    history: list[dict[str, float]]
    """One entry per optimizer step, earlier attempts' included: step, loss, learning_rate."""


def finetune(
    model: nn.Module,
    data: Encoded,
    collate: PadRight,
    config: JengaConfig,
    plan: Plan,
    *,
    seed: int,
    checkpoint_folder: Path,
    watcher: Watcher,
    resume_from: Path | None = None,
    ranks: Ranks = ALONE,
    measure_memory: bool = False,
) -> Finished:
    """Train the adapter of `model` (already adapted and patched) for `plan.total_steps`, or on from a checkpoint.

    `data` is all of it; of several `ranks` each takes its share (parallel.py), and only the first saves. With
    `measure_memory`, the first micro-batch is computed twice, densely before (dense_reference.py).
    """
    arguments = TrainingArguments(
        output_dir=str(checkpoint_folder),
        max_steps=plan.total_steps,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=min(20, plan.total_steps // 10) if plan.total_steps >= 20 else 0,  # of 1, it would be a rate of 0
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=next(model.parameters()).device.type == "cpu",
    )
    trainer = _MeasuringTrainer(
        model=model,
        args=arguments,
        train_dataset=ranks.share(data.sequences),
        data_collator=collate,
        callbacks=[callback := _Callback(watcher, checkpoint_folder, ranks)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.watcher, trainer.checkpoint_folder, trainer.ranks = watcher, checkpoint_folder, ranks
    trainer.measures_memory, trainer.callback = measure_memory, callback
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    trainer.let_go()
    assert trainer.optimizer is not None
    return Finished(
        stopped_at_step=trainer.state.global_step,
        trained_tokens=int(trainer.state.num_input_tokens_seen) * ranks.size,
        has_trained=trainer.has_trained,
        optimizer=trainer.optimizer,
        history=[entry for entry in trainer.state.log_history if "loss" in entry],
    )


class _MeasuringTrainer(Trainer):
    """Measures memory, if asked, with the first micro-batch; its checkpoints are whole or not there."""

    measures_memory = has_trained = False
    watcher: Watcher
    callback: _Callback
    checkpoint_folder: Path
    ranks: Ranks = ALONE
    _writing_to: Path | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.has_trained = True
        loss = self._steps({**self._prepare_inputs(inputs), "num_items_in_batch": num_items_in_batch})
        if self.accelerator.sync_gradients:
            self.ranks.average_gradients(each for each in model.parameters() if each.requires_grad)
        return self.ranks.mean(loss)

    def let_go(self) -> None:
        """Of what the steps held."""
        self._steps.let_go()

    @cached_property
    def _steps(self) -> CapturedSteps:
        """Forward and backward, from a CUDA graph where that is possible."""
        is_cuda = self.args.device.type == "cuda"
        return CapturedSteps(handle_of(self.model) if is_cuda else None, self._forward_and_backward)

    def _forward_and_backward(self, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "num_items_in_batch"}
        loss: Tensor = super().training_step(self.model, inputs, batch["num_items_in_batch"])
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor | Any], *args: Any, **kwargs: Any) -> Any:
        if not self.measures_memory:
            return super().compute_loss(model, inputs, *args, **kwargs)
        self.measures_memory = False
        handle = handle_of(self.model)
        assert handle is not None
        with self.callback.beside_the_clock():
            dense = measure_dense(self.model, handle, inputs)
        reset_peak(self.args.device)
        with saved_activations(model) as saved:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.watcher.memory_measured(saved.total_bytes, dense)
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Count the epoch, by which targets move on. transformers trains a step too many when it goes on from the
        checkpoint of the last one."""
        if (handle := handle_of(self.model)) is not None:
            handle.epoch = kwargs["epoch"]
        step = self.state.global_step
        resumed_to_stop = step > 0 and not self.has_trained and self.watcher.should_stop()
        stop = self.ranks.any(resumed_to_stop, self.args.device)
        if step >= self.state.max_steps or stop:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's checkpoint, in a folder that becomes visible when it is complete."""
        if self.ranks.rank > 0:
            return
        step = self.state.global_step
        trained = sum(parameter.nbytes for parameter in self.model.parameters() if parameter.requires_grad)
        with checkpoints.writing(self.checkpoint_folder, step, need_bytes=4 * trained) as parent:
            self._writing_to = parent
            try:
                super()._save_checkpoint(model, trial)
                state = parent / checkpoints.name_of(step) / checkpoints.STATE_FOLDER
                state.mkdir()
                self.watcher.save_state(state)
            finally:
                self._writing_to = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing_to or self.checkpoint_folder)


class _Callback(TrainerCallback):
    """Translates the Trainer's events for a Watcher."""

    def __init__(
        self,
        watcher: Watcher,
        checkpoint_folder: Path,
        ranks: Ranks = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watcher = watcher
        self.checkpoint_folder = checkpoint_folder
        self.ranks = ranks
        self.clock = clock
        self._last = (0.0, 0)

    @contextmanager
    def beside_the_clock(self) -> Iterator[None]:
        """What is done in the block is no part of a step's time."""
        began = self.clock()
        yield
        at, tokens = self._last
        self._last = (at + self.clock() - began, tokens)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = (self.clock(), int(state.num_input_tokens_seen) * self.ranks.size)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens = self.clock(), int(state.num_input_tokens_seen) * self.ranks.size
        before, tokens_before = self._last
        self._last = (now, tokens)
        self.watcher.step_done(
            state.global_step,
            train_loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            tokens_per_second=(tokens - tokens_before) / max(now - before, 1e-9),
            trained_tokens=tokens,
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.ranks.rank > 0:
            return
        folder = self.checkpoint_folder / checkpoints.name_of(state.global_step)
        self.watcher.checkpoint_saved(state.global_step, folder)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.ranks.any(self.watcher.should_stop(), args.device):
            control.should_training_stop = control.should_save = True

"""The training run: the plan, the loss falls, a resumed run continues the same curve, stopping, the dense reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from jenga_core import JengaConfig, apply_jenga
from jenga_core.errors import ConfigError
from jenga_core.finetuning import trainer
from jenga_core.finetuning.adapters import add_adapter, pack_adapter, save_adapter
from jenga_core.finetuning.data import Encoded, collator, encode_file
from jenga_core.finetuning.dense_reference import DenseReference, measure_dense
from jenga_core.finetuning.trainer import Finished, finetune, make_plan
from jenga_core.patching.apply import JengaHandle
from tests.support.tiny import tiny_model, tiny_tokenizer


class Recorder:
    """A Watcher that remembers, and stops after a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: dict[int, dict[str, Any]] = {}
        self.checkpoints: list[Path] = []
        self.memory: list[tuple[int, DenseReference]] = []
        self.stop_after = stop_after

    def memory_measured(self, activation_bytes: int, dense: DenseReference) -> None:
        assert not self.steps
        self.memory.append((activation_bytes, dense))

    def step_done(self, step: int, **numbers: Any) -> None:
        self.steps[step] = numbers

    def checkpoint_saved(self, step: int, folder: Path) -> None:
        assert (folder / "adapter_model.safetensors").exists()
        self.checkpoints.append(folder)

    def save_state(self, folder: Path) -> None:
        (folder / "note.txt").write_text("of the caller")

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.steps) + 1 >= self.stop_after

    @property
    def losses(self) -> list[float]:
        return [self.steps[step]["train_loss"] for step in sorted(self.steps)]


def config(**overrides: Any) -> JengaConfig:
    given = {
        "context_length_tokens": 64,
        "learning_rate": 1e-2,
        "selection": {"block_tokens": 8},
        "checkpoint_steps": 4,
    }
    return JengaConfig.preset("jenga", **{**given, **overrides})


def corpus(folder: Path) -> Encoded:
    path = folder / "rows.jsonl"
    path.write_text('{"text": "%s"}\n' % ("the quick brown fox jumps over the lazy dog. " * 40))
    return encode_file(path, tiny_tokenizer(), context_length_tokens=64, cache_folder=folder / "cache")


def run(
    folder: Path,
    settings: JengaConfig,
    *,
    resume_from: Path | None = None,
    watcher: Recorder | None = None,
    measure_memory: bool = False,
    data: Encoded | None = None,
) -> tuple[Recorder, Finished, nn.Module]:
    data = data or corpus(folder)
    base = tiny_model()
    base.requires_grad_(False)
    torch.manual_seed(0)
    model = add_adapter(base, settings.lora)
    apply_jenga(model, settings)
    watcher = watcher or Recorder()
    plan = make_plan(settings, {}, num_sequences=len(data.sequences))
    finished = finetune(
        model, data, collator(tiny_tokenizer()), settings, plan,
        seed=7, checkpoint_folder=folder / "checkpoints", watcher=watcher, resume_from=resume_from,
        measure_memory=measure_memory,
    )  # fmt: skip
    return watcher, finished, model


def test_plan_resolves_auto_and_max_steps_replaces_epochs() -> None:
    plan = make_plan(config(max_steps=None, learning_rate=None), {"n_epochs": "auto"}, num_sequences=10)
    assert (plan.batch_size, plan.n_epochs, plan.total_steps, plan.learning_rate) == (1, 3, 30, 2e-4)
    given = {"batch_size": 4, "n_epochs": 2, "learning_rate_multiplier": 3.0}
    plan = make_plan(config(learning_rate=None, gradient_accumulation_steps=2), given, num_sequences=10)
    assert (plan.total_steps, plan.learning_rate) == (4, pytest.approx(6e-4))
    plan = make_plan(config(max_steps=25, learning_rate=0.5), given, num_sequences=10)
    assert (plan.total_steps, plan.n_epochs, plan.learning_rate) == (25, 9, 0.5)


def test_training_lowers_the_loss_and_counts_what_it_saw(tmp_path: Path) -> None:
    watcher, finished, _ = run(tmp_path, config(max_steps=32, checkpoint_steps=16))
    assert sorted(watcher.steps) == list(range(1, 33))
    assert sum(watcher.losses[-4:]) < 0.85 * sum(watcher.losses[:4])
    assert finished.stopped_at_step == 32
    assert [entry["loss"] for entry in finished.history] == watcher.losses
    assert finished.trained_tokens == watcher.steps[32]["trained_tokens"] <= 32 * 64
    assert finished.has_trained and not watcher.memory
    assert [folder.name for folder in watcher.checkpoints] == ["checkpoint-16", "checkpoint-32"]


def test_memory_is_measured_beside_dense_with_one_batch_and_training_does_not_notice(tmp_path: Path) -> None:
    """Rows of all lengths, in whose order chance has a part; random selection draws numbers, too."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join('{"text": "%s"}\n' % ("the quick brown fox " * n) for n in (3, 1, 2, 3, 1, 2, 1, 3)))
    data = encode_file(rows, tiny_tokenizer(), context_length_tokens=64, cache_folder=tmp_path / "cache")
    settings = config(max_steps=4, selection={"block_tokens": 8, "score": "random"}, lora={"dropout": 0.1})
    (tmp_path / "measured").mkdir()
    watcher, _, _ = run(tmp_path / "measured", settings, measure_memory=True, data=data)
    plain, _, _ = run(tmp_path, settings, data=data)
    assert watcher.losses == plain.losses
    ((sparse_bytes, dense),) = watcher.memory
    assert dense.tokens == watcher.steps[1]["trained_tokens"]
    assert 0.2 < sparse_bytes / dense.activation_bytes < 0.9


def test_what_is_done_beside_the_clock_is_no_part_of_a_step(tmp_path: Path) -> None:
    now = [100.0]
    watcher = Recorder()
    callback = trainer._Callback(watcher, tmp_path, clock=lambda: now[0])
    state = TrainerState(num_input_tokens_seen=0)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_train_begin(arguments, state, TrainerControl())
    now[0] += 1
    with callback.beside_the_clock():
        now[0] += 50
    now[0] += 1
    state.num_input_tokens_seen, state.global_step = 64, 1
    callback.on_log(arguments, state, TrainerControl(), {"loss": 1.0, "learning_rate": 0.1})
    assert watcher.steps[1]["tokens_per_second"] == pytest.approx(32)


def test_a_short_run_wastes_no_step_on_a_rate_of_zero(tmp_path: Path) -> None:
    watcher, _, _ = run(tmp_path, config(max_steps=12))
    rates = [watcher.steps[step]["learning_rate"] for step in sorted(watcher.steps)]
    assert rates[0] == pytest.approx(1e-2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_a_resumed_run_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    """Random selection makes the check sharp: the generator's state must come back too."""
    settings = config(max_steps=8, selection={"block_tokens": 8, "score": "random"})
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    whole, _, _ = run(tmp_path / "whole", settings)
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
    rest, finished, _ = run(tmp_path / "resumed", settings, resume_from=checkpoint)
    assert sorted(rest.steps) == [5, 6, 7, 8]
    assert rest.losses == whole.losses[4:]
    assert [entry["loss"] for entry in finished.history] == whole.losses


def test_the_epoch_is_counted_also_by_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets move on with it."""
    epochs: list[int] = []
    run_once = JengaHandle.run

    def spy(handle: JengaHandle, *args: Any) -> Any:
        epochs.append(handle.epoch)
        return run_once(handle, *args)

    monkeypatch.setattr(JengaHandle, "run", spy)
    settings = config(max_steps=12, gradient_accumulation_steps=6, checkpoint_steps=6)
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    whole, _, _ = run(tmp_path / "whole", settings)
    assert epochs == sorted(epochs)
    assert max(epochs) == 2
    of_whole, epochs[:] = list(epochs), []
    run(tmp_path / "resumed", settings, resume_from=whole.checkpoints[0])
    assert epochs == of_whole[-len(epochs) :]


def test_a_run_that_was_lost_after_its_last_step_trains_no_more(tmp_path: Path) -> None:
    (tmp_path / "resumed").mkdir()
    whole, _, trained = run(tmp_path, config(max_steps=4))
    rest, finished, model = run(tmp_path / "resumed", config(max_steps=4), resume_from=whole.checkpoints[-1])
    assert (rest.steps, finished.stopped_at_step, finished.has_trained) == ({}, 4, False)
    assert [entry["loss"] for entry in finished.history] == whole.losses
    torch.testing.assert_close(model.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_a_watcher_can_stop_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    watcher, finished, _ = run(tmp_path, config(max_steps=16), watcher=Recorder(stop_after=3))
    assert finished.stopped_at_step == 3
    assert sorted(watcher.steps) == [1, 2, 3]
    assert [folder.name for folder in watcher.checkpoints] == ["checkpoint-3"]


def test_saved_adapter_loads_with_plain_peft_and_changes_the_logits(tmp_path: Path) -> None:
    _, _, model = run(tmp_path, config(max_steps=4))
    save_adapter(model, tmp_path / "adapter", base_model_name="tiny")
    pack_adapter(tmp_path / "adapter", tmp_path / "adapter.tar.gz")
    base = tiny_model().eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(input_ids=ids).logits
        expected = model.eval()(input_ids=ids).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected)


def test_unknown_target_modules_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"\['c_attn'\] are no linear layers .* these are q_proj, "):
        add_adapter(tiny_model(), config(lora={"target_modules": ["q_proj", "c_attn"]}).lora)


def test_dense_reference_saves_more_and_leaves_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(max_steps=1)
    base = tiny_model(layers=8)
    base.requires_grad_(False)
    model = add_adapter(base, settings.lora)
    handle = apply_jenga(model, settings)
    batch = collator(tiny_tokenizer())([{"input_ids": list(range(3, 131)), "labels": list(range(3, 131))}])
    dense = measure_dense(model, handle, batch)
    assert dense.measured_tokens == dense.tokens == 128
    assert all(parameter.grad is None for parameter in model.parameters())
    assert dense.peak_bytes > dense.activation_bytes > dense.states_bytes / 100 > 0

    monkeypatch.setattr("jenga_core.finetuning.dense_reference.LONGEST_ON_CPU_TOKENS", 64)
    extended = measure_dense(model, handle, batch)
    assert (extended.measured_tokens, extended.tokens) == (32, 128)
    assert extended.activation_bytes == pytest.approx(dense.activation_bytes, rel=0.02)

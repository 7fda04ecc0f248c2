"""transformers' own Trainer on a model that was patched by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from jenga_core import JengaCallback, JengaConfig, apply_jenga
from tests.patching.test_parity import with_adapter
from tests.support.tiny import tiny_model


def test_every_block_is_learnt_from_when_epochs_are_counted(tmp_path: Path) -> None:
    model = with_adapter(tiny_model())
    handle = apply_jenga(model, JengaConfig.preset("jenga", keep_fraction=0.4, selection={"block_tokens": 8}))
    ids = torch.randint(1, 256, (160,), generator=torch.Generator().manual_seed(0)).tolist()
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=5, per_device_train_batch_size=1, report_to=[], save_strategy="no", use_cpu=True
    )
    targets: list[frozenset[int]] = []

    class Watching(JengaCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            targets.append(frozenset(self.handle.report().spans[-1].targets))

    data = [{"input_ids": ids, "labels": ids}]
    Trainer(model, arguments, train_dataset=data, callbacks=[Watching(handle)]).train()  # type: ignore[arg-type]
    assert len(targets) == 5
    assert all(len(each) == 4 for each in targets)
    assert frozenset().union(*targets) == frozenset(range(20))


def test_data_without_a_length_moves_on_each_time_it_begins_anew(tmp_path: Path) -> None:
    model = with_adapter(tiny_model())
    handle = apply_jenga(model, JengaConfig.preset("jenga", selection={"block_tokens": 8}))
    epochs: list[int] = []

    class Rows(IterableDataset[dict[str, list[int]]]):
        def __iter__(self) -> Iterator[dict[str, list[int]]]:
            yield from [{"input_ids": list(range(1, 65)), "labels": list(range(1, 65))}] * 4

    class Watching(JengaCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            epochs.append(self.handle.epoch)

    arguments = TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=1, gradient_accumulation_steps=2, report_to=[],
        save_strategy="no", use_cpu=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Rows(), callbacks=[Watching(handle)]).train()
    assert epochs == [0, 0, 1, 1, 2, 2]

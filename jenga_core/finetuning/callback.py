"""For transformers' own Trainer on a model that was patched by hand: `callbacks=[JengaCallback(handle)]`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerState

from jenga_core.patching.apply import JengaHandle


class JengaCallback(TrainerCallback):
    """Tells the handle how often the data was seen. Targets move on with it: without, every epoch learns from the same
    tokens."""

    def __init__(self, handle: JengaHandle) -> None:
        self.handle = handle
        self._next = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """The Trainer calls it; a resumed run goes on with the epoch that it was in."""
        self._next = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """The Trainer calls it. Counted here: of data without a length the Trainer's own count lags behind."""
        self.handle.epoch = self._next
        self._next += 1

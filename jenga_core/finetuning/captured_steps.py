"""Training steps captured once as a CUDA graph and replayed, where each is the same work on other tokens.

A step is three to eight thousand kernels. Launching them from Python takes 0.2 to 0.3 s whatever the model's size; a
GPU computes them in 0.03 s for a model of 135M parameters at 8,192 tokens, in 0.15 s for one of 8B at 4,096. Replayed,
they follow each other without Python.

A graph repeats addresses and sizes, so it holds for steps that differ in the values of tensors alone:

    full windows              every token is real, of one document, and has a label; batches of one shape
    choices on the device     how many blocks are kept follows from the shape; which ones is data
    nothing drawn at random   no dropout, no random selection

Two steps of a kind run as they are, which compiles kernels and lets libraries make their plans; the third is captured.
A step of another kind runs as it is and lets the graph go, whose memory is that of the step's activations.

    copy the batch in  ->  forward, backward (the graph)  ->  gradients where the optimizer looks  ->  loss
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from jenga_core.config import JengaConfig
from jenga_core.patching.apply import JengaHandle
from jenga_core.patching.layer_runs import random_state

Batch = dict[str, Any]
"""input_ids, labels, perhaps attention_mask (B x T, int64 each) and num_items_in_batch (a number or a 0-d tensor)."""

Step = Callable[[Batch], Tensor]
"""Forward and backward of a batch; returns the loss, without a graph. Gradients are added to the parameters'."""

Replay = Callable[[], None]

_Kind = tuple[tuple[Any, ...], JengaConfig, int, tuple[bool, ...]]
"""Equal for steps that are the same work."""

_KNOWN = frozenset({"input_ids", "labels", "attention_mask", "num_items_in_batch"})
_STEPS_BEFORE = 2
_LOGGER = logging.getLogger(__name__)


def capture_cuda_graph(function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Call the function once without executing what it launches. Returns what executes it, and the tensor that it
    returned, which every replay fills anew."""
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[torch.cuda.current_device()]
    random_numbers = generator.clone_state()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders of data have threads of their own
            result = function()
    except BaseException:
        generator.graphsafe_set_state(random_numbers)  # its own still believes that it is being recorded
        raise
    return graph.replay, result


class CapturedSteps:
    """Runs steps, as they are or from a graph; either way with the same effect."""

    def __init__(
        self,
        handle: JengaHandle | None,
        step: Step,
        capture: Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]] = capture_cuda_graph,
    ) -> None:
        """handle: of the model that `step` trains; None: every step runs as it is."""
        self.handle = handle
        self.step = step
        self.capture = capture
        self.replayed = 0
        """Steps that came from a graph."""
        self._parameters = () if handle is None else tuple(handle.parts.causal_lm.parameters())  # slow to find
        self._captured: _Captured | None = None
        self._kind: _Kind | None = None
        self._seen = 0
        self._fails = False

    def __call__(self, batch: Batch) -> Tensor:
        """The step's loss, a tensor of its own."""
        kind = self._kind_of(batch)
        if kind is None or kind != self._kind:
            self.let_go()
        if kind is None or self.handle is None:
            return self.step(batch)
        if self._captured is not None and self._captured.epoch != self.handle.epoch:
            self._captured = None  # targets move on with the epoch
        batch = {name: value for name, value in batch.items() if name != "attention_mask"}
        self._kind, self._seen = kind, self._seen + 1
        if self._captured is None and self._seen > _STEPS_BEFORE and not self._fails:
            self._captured = self._capture(batch)
        if self._captured is not None:
            self.replayed += 1
            return self._captured.replay(batch)
        return self._as_it_is(batch)

    def let_go(self) -> None:
        """Give the graph's memory back."""
        self._captured, self._kind, self._seen = None, None, 0

    def _kind_of(self, batch: Batch) -> _Kind | None:
        """None for a step that cannot be captured."""
        if self.handle is None or self._fails or not can_be_captured(self.handle, batch):
            return None
        values = tuple((name, _shape_of(value)) for name, value in sorted(batch.items()) if name != "attention_mask")
        trained = tuple(each.requires_grad for each in self._parameters)
        return values, self.handle.config, id(self.handle.predictors), trained

    def _as_it_is(self, batch: Batch) -> Tensor:
        assert self.handle is not None
        before = random_state(batch["input_ids"].device)
        with self.handle.full_windows():
            loss = self.step(batch)
        self._fails = self._fails or random_state(batch["input_ids"].device) != before  # it drops something out
        return loss

    def _capture(self, batch: Batch) -> _Captured | None:
        assert self.handle is not None
        try:
            with self.handle.full_windows():
                return _Captured(self.handle, self.step, batch, self.capture)
        except RuntimeError as error:  # PyTorch's, of whatever cannot be captured, and of a GPU that is full
            self._fails = True
            _LOGGER.warning("steps run as they are: capturing one as a CUDA graph failed: %s", error)
            return None


class _Captured:
    """One step as a graph, and the tensors that it reads and writes."""

    def __init__(self, handle: JengaHandle, step: Step, batch: Batch, capture: Any) -> None:
        self.handle, self.epoch = handle, handle.epoch
        self.batch = {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}
        trained = [parameter for parameter in handle.parts.causal_lm.parameters() if parameter.requires_grad]
        self.gradients = [(parameter, torch.zeros_like(parameter)) for parameter in trained]
        self._lend_gradients()
        self._replay, self.loss = capture(lambda: step(self.batch))
        self.left = handle.last

    def replay(self, batch: Batch) -> Tensor:
        """The step on this batch."""
        for name, value in batch.items():
            if isinstance(value, Tensor):
                self.batch[name].copy_(value)
        self._lend_gradients()
        self._replay()
        self.handle.last = self.left
        return self.loss.clone()

    def _lend_gradients(self) -> None:
        """The graph adds to these tensors; what the parameters have collected so far moves into them."""
        empty = [gradient for parameter, gradient in self.gradients if parameter.grad is None]
        if empty:
            torch._foreach_zero_(empty)
        for parameter, gradient in self.gradients:
            if parameter.grad is not None and parameter.grad is not gradient:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient


def can_be_captured(handle: JengaHandle, batch: Mapping[str, Any]) -> bool:
    """Whether a step on this batch is the same work as on any other of its shape. Waits for the GPU."""
    if batch.get("input_ids") is None:
        return False
    config, parts, tokens = handle.config, handle.parts, batch["input_ids"].shape[-1]
    places = {value.device for value in batch.values() if isinstance(value, Tensor)}
    selection = config.selection
    chooses_on_device = not handle.enabled or (
        selection.by == "keep_fraction" and selection.mlp_keep_fraction == 1 and selection.score != "random"
    )
    return (
        config.cuda_graph
        and not config.offload  # its parcels travel on a stream of their own, and such steps are long
        and len(places) == 1  # what lies elsewhere would become a constant
        and handle.replaces_forward
        and chooses_on_device
        and parts.causal_lm.config._attn_implementation == "sdpa"
        and not parts.decoder.gradient_checkpointing
        and not parts.slides_within(tokens)
        and is_full(batch, parts.head.weight.shape[0])
    )


def is_full(batch: Mapping[str, Any], vocabulary: int) -> bool:
    """Every token is real, and has a label below `vocabulary`, but the first, whose label nobody predicts."""
    if not _KNOWN.issuperset(batch) or batch.get("labels") is None:
        return False
    labels = batch["labels"][:, 1:]
    fine = ((labels >= 0) & (labels < vocabulary)).all()
    if batch.get("attention_mask") is not None:
        fine = fine & (batch["attention_mask"] != 0).all()
    return bool(fine)


def _shape_of(value: Any) -> Any:
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value

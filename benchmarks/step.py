"""One row of the speed table: whole steps of one policy, timed and weighed.

A step is forward, backward and AdamW. Times are CUDA events between steps that follow each other without a pause; the
peak is the allocator's high-water mark over all steps but the first.

The step keeps no output, so logits, which plain transformers makes in full, are freed where the model frees them. By
count, plain LoRA on Llama-3-8B at 8,192 tokens needs 76.9 GiB: 15.0 of weights, 50.1 that autograd keeps (200 KiB per
token and layer), and 11.7 while the loss's backward holds log-probabilities and two gradients of their size, float32.
That fits an 80 GB card only if the allocator loses nothing between blocks of different sizes, hence
`expandable_segments` for every row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import environment
from benchmarks.contenders import POLICIES, Prepared, Unsupported, prepare
from benchmarks.roofline import Involved
from benchmarks.shapes import SHAPES, Shape, make_model

FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Order in which PyTorch tries its attention backends, for every policy."""

SLOW_STEP_SECONDS = 5.0
"""From here on the second step is timed, too, and nothing is captured: it would cost a minute and change nothing."""


LAUNCH_BOUND_MS = 500.0
"""Below that, the GPU of a step that is launched from Python waits for the launches; times within it are theirs."""


@dataclass(frozen=True)
class Spec:
    """What a row measures."""

    model: str
    tokens: int
    policy: str
    keep_fraction: float
    """1 where the policy keeps everything."""

    recompute: str

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for rows that measure the same thing."""
        return (self.model, self.tokens, self.policy, self.keep_fraction, self.recompute)

    @staticmethod
    def of(row: dict[str, Any]) -> Spec:
        """The spec inside a row."""
        return Spec(**{name: row[name] for name in Spec.__dataclass_fields__})


def measure(spec: Spec, timed_steps: int, device: torch.device) -> dict[str, Any]:
    """The row: measurements, or `out_of_memory`, or `unsupported`."""
    started = time.perf_counter()
    shape, policy = SHAPES[spec.model], POLICIES[spec.policy]
    row: dict[str, Any] = {**asdict(spec), **environment.describe(), "free_bytes_before": _free(device)}
    try:
        torch.manual_seed(0)
        prepared = prepare(
            policy,
            make_model(shape, spec.tokens, device),
            shape,
            tokens=spec.tokens,
            keep_fraction=spec.keep_fraction,
            recompute=spec.recompute,
        )
        step = Step(prepared.model, shape, spec.tokens, device, prepared.handle)
        row |= {
            "config": prepared.config,
            "weights_bytes": sum(parameter.nbytes for parameter in prepared.model.parameters()),
            "allocator": _allocator(device),
            "setup_seconds": round(time.perf_counter() - started, 1),
        }
        with sdpa_kernel(FASTEST_FIRST, set_priority=True):
            row |= _steps(step, prepared, device, timed_steps)
    except Unsupported as reason:
        return {**row, "unsupported": str(reason)}
    except RuntimeError as error:
        if "out of memory" not in str(error):  # PyTorch's allocator, and the libraries below it, agree on the words
            raise
        return {**row, "out_of_memory": str(error).split(". GPU")[0], "peak_bytes": _peak(device)}
    if not torch.isfinite(torch.tensor(row["loss"])):
        raise FloatingPointError(f"{spec}: the loss is {row['loss']}")
    return row


class Step:
    """Forward, backward, optimizer, on one random sequence in which every token has a label; ours from a CUDA graph
    where it can be captured, from the third step on, as the trainer does it."""

    def __init__(
        self, model: torch.nn.Module, shape: Shape, tokens: int, device: torch.device, handle: Any = None
    ) -> None:
        self.model = model
        self.captured: Any = None
        if handle is not None and device.type == "cuda":
            from jenga_core.finetuning.captured_steps import CapturedSteps

            self.captured = CapturedSteps(handle, self._forward_and_backward)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
        self.input_ids = torch.randint(shape.vocabulary, (1, tokens), device=device)

    def __call__(self) -> torch.Tensor:
        """The loss."""
        run = self.captured or self._forward_and_backward
        loss: torch.Tensor = run({"input_ids": self.input_ids, "labels": self.input_ids})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def as_it_is(self) -> None:
        """Forward and backward without a graph, and without a wait for the GPU where our code knows a way."""
        with self.captured.handle.full_windows() if self.captured is not None else nullcontext():
            self._forward_and_backward({"input_ids": self.input_ids, "labels": self.input_ids})
        self.optimizer.zero_grad(set_to_none=True)

    def _forward_and_backward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch, use_cache=False).loss
        loss.backward()
        return loss.detach()


def _steps(step: Step, prepared: Prepared, device: torch.device, timed_steps: int) -> dict[str, Any]:
    clock = Clock(device)
    with attention_backends() as backends:
        step()
    loss = torch.zeros(())

    def one() -> None:
        nonlocal loss
        loss = step()

    timing: AbstractContextManager[list[tuple[Any, Any]]]
    timing = selection_ranges(clock) if prepared.config is not None else nullcontext([])
    with timing as ranges:
        _reset_peak(device)
        (second_ms,) = clock.milliseconds(clock.between(one, 1))
        selection_ms = sum(clock.elapsed(*marks) for marks in ranges)
    waits_for_python = second_ms < LAUNCH_BOUND_MS and device.type == "cuda"
    if ranges and waits_for_python:
        with selection_ranges(clock, behind_a_pause=True) as ranges:
            step.as_it_is()
        torch.cuda.synchronize(device)
        selection_ms = sum(clock.elapsed(*marks) for marks in ranges)
    warmup_steps, times = 2, []
    if second_ms > 1000 * SLOW_STEP_SECONDS:
        warmup_steps, times = 1, [second_ms]
    elif step.captured is not None:
        step()  # captures, if it can; replays allocate nothing, so the peak is that of the steps before
        warmup_steps = 3
    count = timed_steps if second_ms >= 500 else 2 * timed_steps
    times += clock.milliseconds(clock.between(one, count - len(times)))
    row = {
        "second_step_ms": second_ms,
        "steps_from_a_graph": step.captured.replayed if step.captured is not None else 0,
        "step_ms_p20": quantile(times, 0.2),
        "step_ms_p50": statistics.median(times),
        "step_ms_p80": quantile(times, 0.8),
        "step_ms_all": [round(ms, 3) for ms in times],
        "warmup_steps": warmup_steps,
        "peak_bytes": _peak(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0,
        "attention_backends": backends,
        "loss": float(loss),
    }
    if prepared.config is not None and prepared.handle.report().spans:
        report = prepared.handle.report()
        row["selection_ms"] = selection_ms
        row["selection_of_ms"] = row["step_ms_p50"] if waits_for_python else second_ms
        row["mean_kept_fraction"] = statistics.mean(report.kept_fraction)
        row["entry_layer"] = report.entry_layer
        selection, span = prepared.config["selection"], report.spans[-1]
        asking = span.targets if selection["asked_by"] == "targets" and span.targets else None
        tokens = step.input_ids.shape[1]
        row["involved"] = asdict(
            Involved.of_blocks(span.blocks, tokens, selection["block_tokens"], asking_blocks=asking)
        )
    return row


class Clock:
    """Marks in the device's own time, or in the host's where there is no GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """A point in the stream of work."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, function: Callable[[], Any], times: int) -> list[Any]:
        """Marks before, between and after so many calls, which follow each other without a pause."""
        marks = [self.mark()]
        for _ in range(times):
            function()
            marks.append(self.mark())
        return marks

    def milliseconds(self, marks: Sequence[Any]) -> list[float]:
        """Between neighbours; waits for the last."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [self.elapsed(before, after) for before, after in pairwise(marks)]

    def elapsed(self, before: Any, after: Any) -> float:
        """Milliseconds between two marks that are past."""
        if self.device.type == "cuda":
            return float(before.elapsed_time(after))
        return 1000 * float(after - before)


_SECOND_OF_CYCLES = 1_800_000_000


@contextmanager
def selection_ranges(clock: Clock, behind_a_pause: bool = False) -> Iterator[list[tuple[Any, Any]]]:
    """Marks around every cut into blocks, scoring and selection while the block runs.

    Args:
        behind_a_pause: the GPU sleeps for a second before the first, so that everything is queued when it goes on.
    """
    from jenga_core.patching.involvement import Involvement

    ranges: list[tuple[Any, Any]] = []

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            if behind_a_pause and not ranges:
                torch.cuda._sleep(_SECOND_OF_CYCLES)
            before = clock.mark()
            result = function(*args, **kwargs)
            ranges.append((before, clock.mark()))
            return result

        return measured

    originals = {name: getattr(Involvement, name) for name in ("__init__", "selection_at")}
    for name, original in originals.items():
        setattr(Involvement, name, around(original))
    try:
        yield ranges
    finally:
        for name, original in originals.items():
            setattr(Involvement, name, original)


@contextmanager
def attention_backends() -> Iterator[dict[str, int]]:
    """Which of PyTorch's attention operators ran while the block did, and how often."""
    counts: dict[str, int] = {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        yield counts
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::_scaled_dot_product_")
        if name != event.key:
            counts[name.replace("_attention", "")] = event.count


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the others is below; one of them, not a mean of two."""
    return sorted(values)[round(share * (len(values) - 1))]


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _allocator(device: torch.device) -> str:
    if device.type != "cuda":
        return "host"
    settings = torch.cuda.memory._snapshot().get("allocator_settings", {})
    return "expandable_segments" if settings.get("expandable_segments") else "default"


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

"""Where does a step's time go, and where its memory?

    python -m benchmarks profile --tokens 8192 --policies jenga lora+liger --recompute none
    python -m benchmarks profile --docs docs/profile.md         write the page from the results that are there

Time: one step under torch's profiler, its kernels added up by kind and phase (benchmarks/trace.py). Memory: another
step, weighed at the borders of its phases, and the storages that autograd keeps, by shape. Every row in a process of
its own, prepared like the rows of the speed table; kept as RESULTS/profile-MODEL-TOKENS-POLICY-KEEP-RECOMPUTE-GPU.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.profiler import ProfilerActivity, record_function

from benchmarks import environment, profile_page, trace
from benchmarks.contenders import POLICIES, RECOMPUTE, prepare
from benchmarks.plans import row, unique
from benchmarks.processes import Failed, measured_apart
from benchmarks.shapes import SHAPES, make_model
from benchmarks.speed import RESULTS
from benchmarks.step import FASTEST_FIRST, Spec, Step


def measure(spec: Spec, device: torch.device) -> dict[str, Any]:
    """The profile of one policy; on a CPU without times, which are the GPU's."""
    torch.manual_seed(0)
    shape = SHAPES[spec.model]
    prepared = prepare(
        POLICIES[spec.policy],
        make_model(shape, spec.tokens, device),
        shape,
        tokens=spec.tokens,
        keep_fraction=spec.keep_fraction,
        recompute=spec.recompute,
    )
    step = Step(prepared.model, shape, spec.tokens, device)
    found: dict[str, Any] = {**asdict(spec), **environment.describe()}
    with sdpa_kernel(FASTEST_FIRST, set_priority=True):
        for _ in range(2):
            step()
        found["memory"] = weigh(step, device)
        if device.type == "cuda":
            found["time"] = _traced(step, is_ours=prepared.config is not None)
    return found


def weigh(step: Step, device: torch.device) -> dict[str, Any]:
    """Bytes before, after and at most in each phase of a step; what autograd keeps, by shape."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.model.parameters()}
    kept: dict[int, tuple[str, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            about = f"{str(tensor.dtype).removeprefix('torch.')} {' x '.join(map(str, tensor.shape))}"
            kept.setdefault(storage.data_ptr(), (about, storage.nbytes()))
        return tensor

    phases: dict[str, dict[str, int]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        before = _allocated(device, start=True)
        keeps = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        try:
            with keeps if name in ("forward", "loss") else nullcontext():  # not what backward makes again
                yield
        finally:
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
            phases[name] = {"before": before, "peak": peak, "after": _allocated(device)}

    in_phases(step, phase)
    by_shape: dict[str, list[int]] = {}
    for about, size in kept.values():
        count_and_bytes = by_shape.setdefault(about, [0, 0])
        count_and_bytes[0] += 1
        count_and_bytes[1] += size
    largest = sorted(by_shape.items(), key=lambda item: -item[1][1])
    trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
    moments = [value for state in step.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return {
        "frozen_weights_bytes": sum(p.nbytes for p in step.model.parameters() if not p.requires_grad),
        "adapter_bytes": sum(tensor.nbytes for tensor in (*trained, *moments)),
        "phases": phases,
        "kept_bytes": sum(size for _, size in kept.values()),
        "kept": [{"shape": about, "count": count, "bytes": size} for about, (count, size) in largest[:20]],
    }


def in_phases(step: Step, phase: Callable[[str], Any]) -> None:
    """One step, each of its phases inside of `phase(name)`: forward (the decoder), loss, backward, optimizer."""
    decoder = _decoder(step.model)
    own = decoder.__dict__.get("forward")
    forward = decoder.forward
    with ExitStack() as open_phase:

        def decode(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            open_phase.close()
            open_phase.enter_context(phase("loss"))
            return output

        decoder.forward = decode
        try:
            open_phase.enter_context(phase("forward"))
            loss = step.model(input_ids=step.input_ids, labels=step.input_ids, use_cache=False).loss
        finally:
            if own is None:
                del decoder.forward
            else:
                decoder.forward = own
    with phase("backward"):
        loss.backward()
    with phase("optimizer"):
        step.optimizer.step()
        step.optimizer.zero_grad(set_to_none=True)


def _decoder(model: Any) -> nn.Module:
    decoder: nn.Module = model.get_base_model().get_decoder()
    return decoder


def _allocated(device: torch.device, *, start: bool = False) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    if start:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _traced(step: Step, *, is_ours: bool) -> dict[str, Any]:
    def phase(name: str) -> record_function:
        return record_function(trace.PREFIX + name)

    with _selection_range() if is_ours else nullcontext(), _triton_ranges():
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            in_phases(step, phase)
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return trace.summary(trace.ran(json.loads(path.read_text())["traceEvents"]))


@contextmanager
def _selection_range() -> Iterator[None]:
    from jenga_core.patching.involvement import Involvement

    original = Involvement.selection_at

    def selection_at(*args: Any, **kwargs: Any) -> Any:
        with record_function(trace.PREFIX + "selection"):
            return original(*args, **kwargs)

    Involvement.selection_at = selection_at  # type: ignore[method-assign]
    try:
        yield
    finally:
        Involvement.selection_at = original  # type: ignore[method-assign]


@contextmanager
def _triton_ranges() -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    original = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
        with record_function(f"{trace.PREFIX}{trace.TRITON}{name}"):
            return original(self, *args, **kwargs)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


def _is_current(found: dict[str, Any]) -> bool:
    wanted = {**environment.versions(), "commit": environment.commit()}
    return all(found.get(name) == value for name, value in wanted.items())


def path_of(spec: Spec, folder: Path) -> Path:
    """Where a profile is kept."""
    name = f"{spec.model}-{spec.tokens}-{spec.policy}-{spec.keep_fraction:g}-{spec.recompute}"
    return folder / f"profile-{name}-{environment.hardware_slug()}.json"


def main(argv: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=__doc__)
    parser.add_argument("--model", choices=list(SHAPES), default="llama-3-8b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=["jenga", "lora+liger"])
    parser.add_argument("--keep-fraction", type=float, default=0.4)
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=["none"], help="of our own policies")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of profile-*.json")
    parser.add_argument("--deadline", type=float, default=240, help="seconds that one profile may take")
    parser.add_argument("--again", action="store_true", help="measure profiles that are there at this commit, too")
    parser.add_argument("--docs", type=Path, help="measure nothing, write this page")
    arguments = parser.parse_args(argv)
    if arguments.docs:
        profiles = [json.loads(path.read_text()) for path in sorted(arguments.results.glob("profile-*.json"))]
        arguments.docs.write_text(profile_page.markdown(profiles), encoding="utf-8")
        return 0
    failed = False
    specs = unique(
        row(arguments.model, tokens, policy, arguments.keep_fraction, recompute)
        for tokens in arguments.tokens
        for policy in arguments.policies
        for recompute in arguments.recompute
    )
    for spec in specs:
        path = path_of(spec, arguments.results)
        if not arguments.again and path.exists() and _is_current(json.loads(path.read_text())):
            print(f"{path.name} is there")
            continue
        try:
            found = measured_apart(measure, spec, seconds=arguments.deadline)
        except (Failed, TimeoutError) as error:
            failed = True
            print(f"FAILED {spec}: {error}", flush=True)
            continue
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(profile_page.section(found), flush=True)
    return 1 if failed else 0

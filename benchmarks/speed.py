"""How long does a step take, and how much memory? Whole training steps at a real model's shape, random weights.

    python -m benchmarks speed --plan bars --deadline 540           again until it says that all rows are there
    python -m benchmarks speed --models llama-3-8b --tokens 8192 --policies lora jenga
    python -m benchmarks speed --plan bars --table                  measure nothing, print what is there

Batch 1, LoRA r = 8 on attention, bfloat16 weights frozen, float32 adapter as PEFT makes it, AdamW. Every row is a
process of its own, alone on the GPU (benchmarks/processes.py), under the same allocator settings and the same order of
attention backends. Rows are kept as they come, in RESULTS/speed-MODEL-GPU.json beside the ceilings of the same card; a
row is there if it was measured with the same versions, and with the same commit where our code is in it.

Exit status: 0 all rows are there, 3 the deadline left some out (call again), 1 a row failed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import ceilings, environment, step, tables
from benchmarks.contenders import POLICIES, RECOMPUTE
from benchmarks.plans import PLANS, combinations, row, unique
from benchmarks.processes import Failed, measured_apart
from benchmarks.roofline import Ceilings, Involved, work
from benchmarks.shapes import SHAPES
from benchmarks.step import SLOW_STEP_SECONDS, Spec

RESULTS = Path(__file__).parent / "results"
STARTUP_SECONDS = 10
"""From the start of a row to its first step, generously."""


class ResultsFile:
    """The rows of one model on one kind of card, and that card's ceilings."""

    def __init__(self, folder: Path, model: str) -> None:
        self.path = folder / f"speed-{model}-{environment.hardware_slug()}.json"
        content = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.ceilings: dict[str, Any] | None = content.get("ceilings")
        self.rows: list[dict[str, Any]] = content.get("rows", [])

    def has(self, spec: Spec, *, of_any_commit: bool = False) -> bool:
        """A row that was measured with what is installed now, and where our code is in it, with this commit."""
        wanted = environment.versions()
        if POLICIES[spec.policy].is_ours and not of_any_commit:
            wanted["commit"] = environment.commit()
        for found in self.rows:
            if Spec.of(found).key == spec.key:
                return all(found.get(name) == value for name, value in wanted.items())
        return False

    def put(self, measured: dict[str, Any]) -> None:
        """Add or replace, and write."""
        key = Spec.of(measured).key
        self.rows = [found for found in self.rows if Spec.of(found).key != key] + [measured]
        self.write()

    def write(self) -> None:
        """Rows in the order of the table, with the columns that follow from other rows and from the ceilings."""
        self.rows = tables.with_derived(self.rows, self.ceilings)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"ceilings": self.ceilings, "rows": self.rows}, indent=1) + "\n")
        unfinished.replace(self.path)


def run(
    specs: list[Spec],
    folder: Path,
    *,
    timed_steps: int,
    deadline: float,
    again: bool,
    of_any_commit: bool = False,
    gpus: int = 1,
) -> int:
    """Measure what is missing, on every GPU one process after the other; the exit status. `deadline` is of
    time.monotonic()."""
    files = {spec.model: ResultsFile(folder, spec.model) for spec in specs}
    missing = [spec for spec in specs if again or not files[spec.model].has(spec, of_any_commit=of_any_commit)]
    work = _Work(missing, files, timed_steps=timed_steps, deadline=deadline)
    threads = [threading.Thread(target=work.measure_on, args=(gpu if gpus > 1 else None,)) for gpu in range(gpus)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if work.todo:
        print(f"{len(work.todo)} of {work.count} rows are left for the next call", flush=True)
    return 1 if work.has_failed else 3 if work.todo else 0


_Task = tuple[Spec, str | None]
"""A row; or, where a model is named, the ceilings for that model's rows, which are measured first."""


class _Work:
    """What is to be measured and where it goes; a thread for each GPU shares it."""

    def __init__(self, specs: list[Spec], files: dict[str, ResultsFile], *, timed_steps: int, deadline: float) -> None:
        self.files = files
        self.timed_steps = timed_steps
        self.deadline = deadline
        self.todo: list[_Task] = []
        without_ceilings = {model for model, file in self.files.items() if file.ceilings is None}
        for spec in specs:
            if spec.model in without_ceilings:
                without_ceilings.remove(spec.model)
                self.todo.append((spec, spec.model))
            self.todo.append((spec, None))
        self.count = len(self.todo)
        self.has_failed = False
        self._lock = threading.Lock()

    def measure_on(self, gpu: int | None) -> None:
        """Until nothing is left, or nothing that ends before the deadline. None: the only GPU there is."""
        while (task := self._take()) is not None:
            if self.deadline - time.monotonic() < expected_seconds(task[0], self.timed_steps):
                self._give_back(task)
                return
            self._measure(task, gpu)

    def _take(self) -> _Task | None:
        with self._lock:
            return self.todo.pop(0) if self.todo else None

    def _give_back(self, task: _Task) -> None:
        with self._lock:
            self.todo.insert(0, task)

    def _measure(self, task: _Task, gpu: int | None) -> None:
        spec, ceilings_of = task
        left = self.deadline - time.monotonic()
        seconds = None if math.isinf(left) else left
        try:
            if ceilings_of is not None:
                measured = measured_apart(ceilings.measure, SHAPES[ceilings_of], seconds=seconds, gpu=gpu)
            else:
                measured = measured_apart(step.measure, spec, self.timed_steps, seconds=seconds, gpu=gpu)
        except (Failed, TimeoutError) as error:
            self.has_failed = True
            print(f"FAILED {spec if ceilings_of is None else 'ceilings'}: {error}", flush=True)
            return
        file = self.files[spec.model]
        with self._lock:
            if ceilings_of is None:
                file.put(measured)
                print(tables.line(next(found for found in file.rows if Spec.of(found).key == spec.key)), flush=True)
            else:
                file.ceilings = measured
                file.write()
                print(tables.ceilings_line(measured), flush=True)


def expected_seconds(spec: Spec, timed_steps: int) -> float:
    """How long a row may take: start with its compilation, warm-up and timed steps, at 60 % of the roofline."""
    involved = Involved.evenly(spec.tokens, spec.keep_fraction)
    needed = work(SHAPES[spec.model], spec.policy, spec.tokens, recompute=spec.recompute, involved=involved)
    one = needed.seconds(Ceilings()) / 0.6
    warm_up = 1 if one > SLOW_STEP_SECONDS else 3
    return STARTUP_SECONDS + (warm_up + (2 if one < 0.5 else 1) * timed_steps) * one


def main(argv: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("--plan", choices=list(PLANS), help="rows in order of value; else the product of what follows")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["llama-3-8b"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--keep-fractions", type=float, nargs="+", default=[0.4])
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, help="of our own policies; default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speed-MODEL-GPU.json")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; twice as many below half a second")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds; no row starts that may miss it")
    parser.add_argument("--gpus", type=int, default=1, help="of one kind, each of which measures a row at a time")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--any-commit", action="store_true", help="leave our rows of other commits as they are")
    parser.add_argument("--table", action="store_true", help="measure nothing, print tables")
    parser.add_argument("--docs", type=Path, help="measure nothing, write this page of all tables in RESULTS")
    arguments = parser.parse_args(argv)
    deadline = time.monotonic() + arguments.deadline
    if arguments.docs:
        arguments.docs.write_text(tables.page(arguments.results), encoding="utf-8")
        return 0
    if arguments.plan:
        specs = PLANS[arguments.plan]()
    elif arguments.recompute:
        specs = unique(
            row(spec.model, spec.tokens, spec.policy, spec.keep_fraction, again)
            for spec in combinations(arguments.models, arguments.tokens, arguments.policies, arguments.keep_fractions)
            for again in arguments.recompute
        )
    else:
        specs = combinations(arguments.models, arguments.tokens, arguments.policies, arguments.keep_fractions)
    if environment.commit() == "unknown":
        print("no git here: set JENGA_COMMIT, or the rows will not say what was measured", file=sys.stderr)
    status = 0
    if not arguments.table:
        status = run(
            specs,
            arguments.results,
            timed_steps=arguments.steps,
            deadline=deadline,
            again=arguments.again,
            of_any_commit=arguments.any_commit,
            gpus=arguments.gpus,
        )
    for model in dict.fromkeys(spec.model for spec in specs):
        file = ResultsFile(arguments.results, model)
        print("\n" + tables.markdown(model, tables.with_derived(file.rows, file.ceilings), file.ceilings))
    return status

"""Does the estimate hold? Predicted against measured peak memory, configuration by configuration.

    python -m benchmarks memory                      what is missing from RESULTS/memory-GPU.json, a line each
    python -m benchmarks memory --deadline 540       start no configuration after so many seconds; call again
    python -m benchmarks memory --docs memory.md     measure nothing, write the page of what is there
    python -m benchmarks memory --only tiny          a smoke test that runs anywhere

Predicted is jenga_core/memory/estimate.py, whose coefficients this table is for. Measured is
torch.cuda.max_memory_allocated over two whole training steps (forward, backward, AdamW; LoRA r = 8 on attention, random
weights of the model's shape), each configuration in a process of its own, whose own allocations are all that it counts.
So configurations run side by side as long as the estimate says that they fit together: where it is wrong, its own
table suffers. One that runs out of memory beside others is measured again alone. On a CPU the measured column is the
process's resident memory and says nothing about the coefficients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.processes import measured_apart
from benchmarks.shapes import SHAPES, make_model
from jenga_core.config import JengaConfig
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.memory.accounting import peak_bytes, reset_peak
from jenga_core.memory.estimate import CONTEXT_BYTES, estimate
from jenga_core.memory.model_shape import ModelShape
from jenga_core.patching.apply import apply_jenga

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
STEPS = 2

Case = dict[str, Any]


def _cases() -> list[Case]:
    """What is measured: model, tokens, batch size and the fields of the JengaConfig."""

    def case(model: str, tokens: int, batch_size: int = 1, **config: Any) -> Case:
        return {"model": model, "tokens": tokens, "batch_size": batch_size, "config": config}

    cases = [case("tiny", 256), case("tiny", 256, preset="lora"), case("tiny", 256, recompute="full")]
    for tokens in (4096, 8192, 16384, 32768):
        cases += [case("llama-3-8b", tokens, recompute=each) for each in ("none", "mlp", "full")]
    cases += [case("llama-3-8b", tokens, recompute="full") for tokens in (65536, 131072)]
    cases += [case("llama-3-8b", tokens, recompute="full", offload=True) for tokens in (8192, 65536, 262144)]
    cases += [case("llama-3-8b", 32768, preset="lora", recompute="full", offload=True)]
    cases += [case("llama-3-8b", 8192, keep_fraction=each) for each in (0.2, 0.7)]
    cases += [case("llama-3-8b", 8192, preset="lora", recompute=each) for each in ("none", "mlp", "full")]
    cases += [
        case("llama-3-8b", 8192, selection={"below_entry": "involved"}),
        case("llama-3-8b", 8192, selection={"unselected": "forward_only"}),
        case("llama-3-8b", 8192, selection={"scope": "per_layer"}),
        case("llama-3-8b", 8192, selection={"loss_on": "all"}),
        case("llama-3-8b", 4096, 2),
        case("llama-3-8b", 4096, preset="lora", fused=False),
        case("llama-2-7b", 8192),
        case("llama-2-7b", 8192, recompute="full"),
        case("llama-2-7b", 32768, recompute="full"),
        case("llama-2-7b", 32768, recompute="full", keep_fraction=0.1),
        case("qwen3-8b", 8192),
        case("qwen3-8b", 16384, recompute="mlp"),
        case("opt-1.3b", 8192),
        case("opt-6.7b", 8192, recompute="full"),
        case("opt-1.3b", 4096, preset="lora"),
        case("smollm2-135m", 8192),
        case("smollm2-135m", 16384, 2, keep_fraction=0.2),
        case("llama-3-8b", 262144, recompute="full"),
    ]
    return cases


CASES: Sequence[Case] = _cases()


def predict(case: Case, device_kind: str) -> dict[str, Any]:
    """The predicted columns."""
    shape = SHAPES[case["model"]]
    fields = {**shape.config_fields(case["tokens"]), "model_type": shape.model_type}
    found = estimate(ModelShape.from_config(fields), config_of(case), case["batch_size"], device_kind=device_kind)
    return {
        "low_bytes": found.low_bytes,
        "expected_bytes": found.expected_bytes,
        "high_bytes": found.high_bytes,
        "by_kind": dict(found.by_kind),
    }


def config_of(case: Case) -> JengaConfig:
    """Exact scores: there are no predictors here."""
    selection = {"score": "exact", **case["config"].get("selection", {})}
    fields = {**case["config"], "selection": selection, "context_length_tokens": case["tokens"]}
    return JengaConfig.parse(fields, param="case")


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """The measured columns; `out_of_memory` where it did not fit."""
    config, shape = config_of(case), SHAPES[case["model"]]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        model = add_adapter(make_model(shape, case["tokens"], device, dtype), config.lora)
        apply_jenga(model, config)
        model.train()
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
        ids = torch.randint(shape.vocabulary, (case["batch_size"], case["tokens"]), device=device)
        reset_peak(device)
        for _ in range(STEPS):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {"out_of_memory": str(error).split(". GPU")[0]}
    pinned = torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0) if device.type == "cuda" else 0
    return {"peak_bytes": peak_bytes(device), "pinned_bytes": pinned}


def main(argv: list[str]) -> int:
    """Measure what is missing, one process after the other, and print the table; 3 when the deadline left some out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--out", type=Path, help="results file; RESULTS/memory-GPU.json by default")
    parser.add_argument("--only", nargs="+", default=None, choices=list(SHAPES), help="models; all but tiny by default")
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--room-gib", type=float, default=float("inf"), help="of the GPU; all that is free by default")
    parser.add_argument("--docs", type=Path, help="measure nothing, write this page of all tables in RESULTS")
    arguments = parser.parse_args(argv)
    if arguments.docs:
        tables = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("memory-*.json"))]
        arguments.docs.write_text(page(tables), encoding="utf-8")
        return 0
    slug = environment.hardware_slug()
    out: Path = arguments.out or RESULTS / f"memory-{slug}.json"
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    models = arguments.only or [name for name in SHAPES if not name.startswith("tiny")]
    missing = [case for case in CASES if case["model"] in models and not any(_is_row_of(row, case) for row in rows)]
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    room = int(min(free, arguments.room_gib * GIB))
    for case, measured in measure_all(missing, _kind(slug), room, time.monotonic() + arguments.deadline):
        missing.remove(case)
        rows.append({**case, **measured, "environment": environment.versions() | {"hardware": slug}})
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(rows, indent=1) + "\n")
        print(line(rows[-1], slug), flush=True)
    print(summary(rows, slug))
    return 3 if missing else 0


def measure_all(
    cases: Sequence[Case], device_kind: str, room_bytes: int, deadline: float
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Each case with its measured columns, as they finish; none is started after the deadline (monotonic seconds).

    The largest go first, and the next that fits into the room beside those that run is started; one that fits into
    none of it runs alone.
    """

    def size(case: Case) -> int:
        if case.get("config", {}).get("offload"):
            return room_bytes  # alone: the host's memory is one, too
        return CONTEXT_BYTES + int(predict(case, device_kind)["high_bytes"])

    waiting = sorted(((size(case), case) for case in cases), key=lambda entry: -entry[0])
    running: dict[Future[dict[str, Any]], tuple[int, Case]] = {}
    with ThreadPoolExecutor() as pool:
        while waiting or running:
            free = room_bytes - sum(size for size, _ in running.values())
            fits = next((entry for entry in waiting if entry[0] <= free or not running), None)
            if fits is not None and time.monotonic() < deadline:
                waiting.remove(fits)
                running[pool.submit(measured_apart, measure, fits[1])] = fits
                continue
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                _, case = running.pop(done)
                measured = done.result()
                if "out_of_memory" in measured and running:
                    wait(running)
                    measured = measured_apart(measure, case)
                yield case, measured


def _is_row_of(row: Mapping[str, Any], case: Case) -> bool:
    return all(row[name] == value for name, value in case.items())


def line(row: Mapping[str, Any], slug: str) -> str:
    """One configuration: measured, then low, expected and high, and how far expected is off. Predicted anew: rows keep
    only what was measured."""
    case = {name: row[name] for name in ("model", "tokens", "batch_size", "config")}
    predicted = predict(case, _kind(slug))
    low, expected, high = (predicted[f"{name}_bytes"] for name in ("low", "expected", "high"))
    name = f"{row['model']:>13} {row['tokens']:>6} x{row['batch_size']} {json.dumps(row['config']):<48}"
    numbers = f"{low / GIB:7.2f} {expected / GIB:7.2f} {high / GIB:7.2f}"
    if "peak_bytes" not in row:
        return f"{name} out of memory; predicted {numbers} GiB"
    peak = row["peak_bytes"]
    outside = "" if low <= peak <= high else "  outside of low..high"
    return f"{name} {peak / GIB:7.2f} GiB; predicted {numbers} ({expected / peak - 1:+.1%}){outside}"


_PAGE_HEAD = """# Memory: estimated and measured

Written by `python -m benchmarks memory --docs docs/memory.md` from `benchmarks/results/memory-*.json`. Peaks of whole
training steps in GiB (`torch.cuda.max_memory_allocated`), LoRA r = 8 on attention, AdamW, random weights of the model's
shape; what a row does not name is the default. The estimate is `jenga_core/memory/estimate.py`, counted from shapes
before anything is loaded.
"""


def page(tables: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """docs/memory.md: a table for each GPU, predicted anew."""
    return "\n\n".join([_PAGE_HEAD.rstrip(), *map(_table, tables)]) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    slug, versions = rows[0]["environment"]["hardware"], rows[0]["environment"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "transformers", "peft"))
    lines = [
        f"## One {slug.upper()}",
        "",
        f"{named}. {summary(rows, slug)}.",
        "",
        "| model | tokens | settings | measured | expected | error | low | high |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted((row for row in rows if "peak_bytes" in row), key=_order):
        predicted = predict({name: row[name] for name in ("model", "tokens", "batch_size", "config")}, _kind(slug))
        low, expected, high = (predicted[f"{name}_bytes"] for name in ("low", "expected", "high"))
        tokens = f"{row['tokens']:,}" + (f" x {row['batch_size']}" if row["batch_size"] > 1 else "")
        peak, settings = row["peak_bytes"], _settings(row["config"])
        numbers = (
            f"{peak / GIB:.2f} | {expected / GIB:.2f} | {expected / peak - 1:+.1%} | {low / GIB:.2f} | {high / GIB:.2f}"
        )
        lines.append(f"| {row['model']} | {tokens} | {settings} | {numbers} |")
    return "\n".join(lines)


def _order(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["model"], row["tokens"], _settings(row["config"])


def _settings(config: Mapping[str, Any]) -> str:
    flat = {**config, **config.get("selection", {})}
    flat.pop("selection", None)
    return ", ".join(f"{name} {str(value).lower()}" for name, value in flat.items()) or "defaults"


def summary(rows: Sequence[Mapping[str, Any]], slug: str) -> str:
    """How many are within 5 %, and within low and high."""
    measured = [row for row in rows if "peak_bytes" in row]
    close = inside = 0
    for row in measured:
        predicted = predict({name: row[name] for name in ("model", "tokens", "batch_size", "config")}, _kind(slug))
        close += abs(predicted["expected_bytes"] / row["peak_bytes"] - 1) <= 0.05
        inside += predicted["low_bytes"] <= row["peak_bytes"] <= predicted["high_bytes"]
    return f"{len(measured)} measured: {close} within 5 % of expected, {inside} between low and high"


def _kind(slug: str) -> str:
    return "cpu" if slug == "cpu" else "cuda"

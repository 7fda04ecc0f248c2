"""Does the model stay as good? Fine-tune on long texts under each policy, then measure the *dense* model with the
adapter.

    python -m benchmarks quality --model FOLDER --train A.txt B.txt --eval C.txt --out results.json

Perplexity of the dense model on unseen texts is what a user of the adapter gets. Every policy sees the same windows in
the same order. `dense-same-loss` is the control that separates two costs: what is lost by taking the loss on fewer
tokens, and what is lost by the sparsity itself. `random` and `recent` show what informed scores are worth.

One process per run, `--jobs` at once; rows that are already in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from benchmarks import environment
from jenga_core.config import JengaConfig
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.finetuning.data import Encoded, PadRight, collator, encode
from jenga_core.finetuning.evaluation import evaluate
from jenga_core.finetuning.pretrained import load_model, load_tokenizer, training_device
from jenga_core.finetuning.trainer import finetune, make_plan
from jenga_core.loss.segmented_cross_entropy import IGNORE
from jenga_core.memory.accounting import peak_bytes, reset_peak
from jenga_core.patching.apply import apply_jenga
from jenga_core.rows import TextRow

Policy = Mapping[str, Any]


POLICIES: Mapping[str, Policy] = {
    "dense": {"preset": "lora"},
    "dense-same-loss": {"preset": "lora"},
    "carried": {"selection": {"below_entry": "involved"}},
    "carried-sum": {"selection": {"below_entry": "involved", "column": "sum"}},
    "carried-random": {"selection": {"below_entry": "involved", "score": "random"}},
    "carried-recent": {"selection": {"below_entry": "involved", "score": "recent"}},
    "deferred": {},
    "deferred-random": {"selection": {"score": "random"}},
    "deferred-recent": {"selection": {"score": "recent"}},
    "deferred-early": {"selection": {"entry_layer": "1/4"}},
    "deferred-late": {"selection": {"entry_layer": "3/4"}},
    "deferred-b256": {"selection": {"block_tokens": 256}},
    "deferred-b512": {"selection": {"block_tokens": 512}},
    "per-layer-loss-all": {"selection": {"scope": "per_layer", "column": "sum", "loss_on": "all"}},
    "per-layer": {"selection": {"scope": "per_layer", "column": "sum"}},
}
"""Names to JengaConfig fields; keep_fraction comes from the command line, `entry_layer` may be a share of the
layers."""

SAME_LOSS_BLOCK_TOKENS = 64


class MaskLabels:
    """For `dense-same-loss`: keeps the labels of a random share of blocks, first and last included, and hides the
    rest."""

    def __init__(self, collate: PadRight, keep_fraction: float, seed: int) -> None:
        self.collate = collate
        self.keep_fraction = keep_fraction
        self.random = random.Random(seed)

    def __call__(self, sequences: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collate(sequences)
        blocks = -(-batch["labels"].shape[1] // SAME_LOSS_BLOCK_TOKENS)
        count = max(round(blocks * self.keep_fraction), 2)
        for row in batch["labels"]:
            kept = {0, blocks - 1, *self.random.sample(range(1, blocks - 1), count - 2)}
            for block in set(range(blocks)) - kept:  # labels are shifted by one: token t learns label t + 1
                row[block * SAME_LOSS_BLOCK_TOKENS + 1 : (block + 1) * SAME_LOSS_BLOCK_TOKENS + 1] = IGNORE
        return batch


class _Clock:
    """A finetuning Watcher that only remembers loss and the time of each step."""

    def __init__(self) -> None:
        self.at: list[float] = [time.perf_counter()]
        self.losses: list[float] = []

    def step_done(self, step: int, *, train_loss: float, **_: Any) -> None:
        self.at.append(time.perf_counter())
        self.losses.append(train_loss)

    def checkpoint_saved(self, step: int, folder: Path) -> None:
        pass

    def should_stop(self) -> bool:
        return False

    def step_seconds(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.at[2:], self.at[3:], strict=False)]


def windows(paths: list[Path], tokenizer: Any, context: int) -> list[dict[str, Any]]:
    """All non-overlapping windows of `context` tokens; a shorter rest is left out."""
    found = []
    for path in paths:
        row = TextRow(path.read_text(encoding="utf-8"))
        found += [window for window in encode(row, tokenizer, context) if len(window["input_ids"]) == context]
    return found


def run_one(arguments: argparse.Namespace, policy: str, seed: int) -> dict[str, Any]:
    """Fine-tune once and measure; the row of the results file."""
    device = training_device()
    config = policy_config(policy, arguments)
    tokenizer = load_tokenizer(arguments.model)
    training = windows(arguments.train, tokenizer, arguments.context)
    held_out = windows(arguments.eval, tokenizer, arguments.context)
    set_seed(seed)
    model = load_model(arguments.model, config, device)
    config = with_entry_layer(config, policy, len(model.get_decoder().layers))
    adapted = add_adapter(model, config.lora)
    handle = apply_jenga(adapted, config)
    collate: Any = collator(tokenizer)
    before = evaluate(adapted, held_out, collate, windows=len(held_out), segment_tokens=2048)
    clock = _Clock()
    reset_peak(device)
    finetune(
        adapted,
        Encoded(training, len(arguments.train), 0, 0, 0, 0),  # type: ignore[arg-type]  # a list of windows serves
        MaskLabels(collate, arguments.keep_fraction, seed) if policy == "dense-same-loss" else collate,
        config,
        make_plan(config, {}, num_sequences=len(training)),
        seed=seed,
        checkpoint_folder=Path(arguments.scratch) / f"{policy}-{seed}",
        watcher=clock,
    )
    peak = peak_bytes(device)
    after = evaluate(adapted, held_out, collate, windows=len(held_out), segment_tokens=2048)
    report = handle.report()
    return {
        "policy": policy,
        "seed": seed,
        "keep_fraction": arguments.keep_fraction,
        "steps": arguments.steps,
        "context": arguments.context,
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "held_out_tokens": after.tokens,
        "train_windows": len(training),
        "mean_kept_fraction": statistics.mean(report.kept_fraction) if report.kept_fraction else 1.0,
        "step_ms_median_shared_gpu": 1000 * statistics.median(clock.step_seconds()),
        "peak_bytes": peak,
        "train_loss_last_20": statistics.mean(clock.losses[-20:]),
        "config": config.model_dump(mode="json"),
        **environment.describe(),
    }


def policy_config(policy: str, arguments: argparse.Namespace) -> JengaConfig:
    """The policy's JengaConfig with the recipe of the command line; `entry_layer` shares are resolved later."""
    fields = json.loads(json.dumps(POLICIES[policy]))
    fields.setdefault("selection", {})["keep_fraction"] = arguments.keep_fraction
    if isinstance(fields["selection"].get("entry_layer"), str):
        del fields["selection"]["entry_layer"]
    recipe = {
        "context_length_tokens": arguments.context,
        "max_steps": arguments.steps,
        "learning_rate": arguments.learning_rate,
        "checkpoint_steps": 1_000_000,
    }
    return JengaConfig.parse({**recipe, **fields})


def with_entry_layer(config: JengaConfig, policy: str, num_layers: int) -> JengaConfig:
    """Turn an entry layer given as a share, like "1/4", into a layer."""
    share = POLICIES[policy].get("selection", {}).get("entry_layer")
    if not isinstance(share, str):
        return config
    numerator, denominator = map(int, share.split("/"))
    values = config.model_dump()
    values["selection"]["entry_layer"] = num_layers * numerator // denominator
    return JengaConfig.model_validate(values)


def main(argv: list[str]) -> int:
    """Run what is missing from the results file, `--jobs` processes at once, and print a line per run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks quality", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="UTF-8 texts to learn from")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, help="UTF-8 texts to measure on")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON list)")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--context", type=int, default=8192, help="tokens per window")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--keep-fraction", type=float, default=0.4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once on the device")
    parser.add_argument("--deadline-seconds", type=float, default=float("inf"), help="start no run after this")
    parser.add_argument("--scratch", default="/tmp/jenga-quality", help="folder for checkpoints")
    parser.add_argument("--one", nargs=2, metavar=("POLICY", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(json.dumps(run_one(arguments, arguments.one[0], int(arguments.one[1]))))
        return 0
    return _run_missing(arguments, argv)


def _run_missing(arguments: argparse.Namespace, argv: list[str]) -> int:
    started = time.monotonic()
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    done = {(row["policy"], row["seed"], row["keep_fraction"], row["steps"], row["context"]) for row in rows}
    waiting = [
        (policy, seed)
        for seed in arguments.seeds
        for policy in arguments.policies
        if (policy, seed, arguments.keep_fraction, arguments.steps, arguments.context) not in done
    ]
    running: dict[tuple[str, int], subprocess.Popen[str]] = {}
    failures = 0
    while waiting or running:
        while waiting and len(running) < arguments.jobs and time.monotonic() - started < arguments.deadline_seconds:
            policy, seed = waiting.pop(0)
            command = [sys.executable, "-m", "benchmarks", "quality", *argv, "--one", policy, str(seed)]
            running[policy, seed] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if not running:
            break
        for key, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[key]
            output = process.stdout.read() if process.stdout else ""
            if process.returncode:
                failures += 1
                print(f"{key[0]} seed {key[1]} failed with exit code {process.returncode}", file=sys.stderr)
                continue
            rows.append(json.loads(output.strip().splitlines()[-1]))
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
            row = rows[-1]
            print(_line(row, time.monotonic() - started), flush=True)
        time.sleep(0.2)
    if waiting:
        print(f"{len(waiting)} runs left; run the same command again to go on", file=sys.stderr)
    return 1 if failures else 0


def _line(row: Mapping[str, Any], seconds: float) -> str:
    return (
        f"{seconds:6.0f} s  {row['policy']:>18} seed {row['seed']}: "
        f"perplexity {row['perplexity_before']:.2f} -> {row['perplexity_after']:.3f}, "
        f"{row['step_ms_median_shared_gpu']:.0f} ms a step, peak {row['peak_bytes'] / 2**30:.2f} GiB"
    )

"""Does the model stay as good? Fine-tune under each policy, then measure the *dense* model with the adapter.

    python -m benchmarks quality --model FOLDER --train A.txt B.txt --eval C.txt --out results.json
    python -m benchmarks quality ... --task retrieval
    python -m benchmarks quality --out results.json --summary

Two tasks: `novels`, perplexity over all windows of unseen texts, and `retrieval` (retrieval.py), answers that depend on
a few far blocks. Every policy (policies.py) sees the same sequences in the same order. Three kinds of rows are there to
compare with:

    dense            what sparsity is measured against, at equal steps
    dense-same-loss  dense, with the loss on the very tokens that `jenga` chooses: separates what is lost by learning
                     from fewer tokens from what is lost by the sparsity
    equal-time       dense for as many steps as checkpointed LoRA makes in the time of the sparse run: give the measured
                     ratio of their step times, `--equal-time 1.8`

Rows that are in the results file are not run again. `--summary` prints means over seeds and differences, and runs
nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks import environment, retrieval, rows
from benchmarks.policies import POLICIES, Setting, train
from jenga_core.finetuning.data import collator
from jenga_core.finetuning.evaluation import evaluate
from jenga_core.finetuning.pretrained import load_tokenizer
from jenga_core.patching.apply import JengaHandle

TRAINING_SEED, HELD_OUT_SEED = 1, 2
SETTING = ("task", "context", "keep_fraction", "learning_rate")
"""What rows of one table share."""

DEFAULT_POLICIES = {
    "novels": ["base", "dense", "jenga", "jenga-random", "jenga-recent", "dense-same-loss"],
    "retrieval": ["base", "dense", "jenga", "scores-alone", "jenga-random", "jenga-recent"],
}


class Texts:
    """The texts of the command line as sequences, made once for a worker."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.tokenizer = load_tokenizer(arguments.model)
        self.own_context = int(AutoConfig.from_pretrained(arguments.model).max_position_embeddings)

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """What is trained on."""
        if self.arguments.task == "novels":
            return self._windows(self.arguments.train)
        return self._documents(self.arguments.train, self.arguments.steps, TRAINING_SEED)

    @cached_property
    def held_out(self) -> list[dict[str, Any]]:
        """What is measured on."""
        if self.arguments.task == "novels":
            return self._windows(self.arguments.eval)
        return self._documents(self.arguments.eval, self.arguments.held_out_documents, HELD_OUT_SEED)

    def _windows(self, paths: Sequence[Path]) -> list[dict[str, Any]]:
        """All non-overlapping windows; a shorter rest is left out."""
        context = self.arguments.context
        found: list[dict[str, Any]] = []
        for path in paths:
            ids = [*self.tokenizer(path.read_text(encoding="utf-8")).input_ids, self.tokenizer.eos_token_id]
            windows = [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)]
            found += [{"input_ids": window, "labels": window, "cut": False} for window in windows]
        return found

    def _documents(self, paths: Sequence[Path], count: int, seed: int) -> list[dict[str, Any]]:
        texts = [path.read_text(encoding="utf-8") for path in paths]
        return retrieval.documents(
            texts,
            self.tokenizer,
            count=count,
            tokens=self.arguments.context,
            facts=self.arguments.facts,
            seed=seed,
        )


def run_one(arguments: argparse.Namespace, texts: Texts, key: rows.Key) -> rows.Row:
    """Fine-tune once and measure; the row of the results file."""
    setting = Setting(
        model=arguments.model,
        context=arguments.context,
        steps=key["steps"],
        keep_fraction=arguments.keep_fraction,
        learning_rate=arguments.learning_rate,
        scratch=arguments.scratch,
        extra=arguments.jenga,
    )
    collate = collator(texts.tokenizer)
    before: dict[str, Any] = {}

    def look(handle: JengaHandle) -> None:
        if arguments.task == "retrieval" and handle.config.enabled:
            before["facts_kept_before"] = retrieval.facts_kept_fraction(handle, texts.held_out[:8], collate)

    trained = train(key["policy"], setting, texts.training, seed=key["seed"], own_context=texts.own_context, look=look)
    measured: dict[str, Any]
    if arguments.task == "novels":
        held_out = evaluate(trained.model, texts.held_out, collate, windows=len(texts.held_out), segment_tokens=2048)
        measured = {"perplexity": held_out.perplexity, "held_out_tokens": held_out.tokens}
    else:
        measured = retrieval.answers(trained.handle, texts.held_out, collate)
        if trained.config.enabled:
            measured["facts_kept_fraction"] = retrieval.facts_kept_fraction(trained.handle, texts.held_out, collate)
    return {
        **key,
        **before,
        **measured,
        "training_sequences": len(texts.training),
        "jobs_on_the_device": -(-arguments.jobs // arguments.gpus),
        **trained.row(),
        **environment.describe(),
    }


def main(argv: list[str]) -> int:
    """Run what is missing from the results file, `--jobs` at once, and print a line per run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON list)")
    parser.add_argument("--summary", action="store_true", help="print what the results file says, and run nothing")
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("--train", type=Path, nargs="+", help="UTF-8 texts to learn from")
    parser.add_argument("--eval", type=Path, nargs="+", help="UTF-8 texts to measure on")
    parser.add_argument("--task", choices=list(DEFAULT_POLICIES), default="novels")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), help="default: those of the task's table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--context", type=int, default=8192, help="tokens per sequence")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--equal-time", type=float, metavar="RATIO", help="step time of checkpointed LoRA over jenga's")
    parser.add_argument("--keep-fraction", type=float, default=0.4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--facts", type=int, default=16, help="retrieval: facts in a document")
    parser.add_argument("--held-out-documents", type=int, default=32, help="retrieval: documents to measure on")
    parser.add_argument("--jenga", type=json.loads, default={}, help="more JengaConfig fields for all runs, as JSON")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--gpus", type=int, default=1, help="over which the runs spread")
    parser.add_argument("--deadline-seconds", type=float, default=float("inf"), help="start no run after this")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/jenga-quality"), help="folder for checkpoints")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.summary:
        print(summary(rows.read(arguments.out)))
        return 0
    if not (arguments.model and arguments.train and arguments.eval):
        parser.error("--model, --train and --eval are needed to run anything")
    if arguments.worker:
        texts = Texts(arguments)
        return rows.serve(lambda key: run_one(arguments, texts, key))
    failures = rows.run_missing(
        keys_of(arguments),
        arguments.out,
        [sys.executable, "-m", "benchmarks", "quality", *argv, "--worker"],
        jobs=arguments.jobs,
        deadline_seconds=arguments.deadline_seconds,
        line_of=_line,
        gpus=arguments.gpus,
    )
    print(summary(rows.read(arguments.out)))
    return 1 if failures else 0


def keys_of(arguments: argparse.Namespace) -> list[rows.Key]:
    """What tells rows apart, for every policy and seed that was asked for."""
    policies = list(arguments.policies or DEFAULT_POLICIES[arguments.task])
    if arguments.equal_time is not None and "equal-time" not in policies:
        policies.append("equal-time")
    if "equal-time" in policies and arguments.equal_time is None:
        raise SystemExit("the policy equal-time needs --equal-time RATIO, a ratio of measured step times")
    shared = {name: getattr(arguments, name) for name in SETTING}
    if arguments.jenga:
        shared["changed"] = arguments.jenga
    return [
        {**shared, "policy": policy, "seed": seed, "steps": _steps(policy, arguments)}
        for seed in arguments.seeds
        for policy in policies
        if policy != "base" or seed == arguments.seeds[0]
    ]


def _steps(policy: str, arguments: argparse.Namespace) -> int:
    if policy == "base":
        return 0
    steps: int = arguments.steps
    return max(round(steps / arguments.equal_time), 1) if policy == "equal-time" else steps


def summary(found: Sequence[rows.Row]) -> str:
    """A table for each setting: means over seeds, and the difference to dense and to the control of that setting."""
    by_setting: dict[tuple[Any, ...], list[rows.Row]] = {}
    for row in found:
        by_setting.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    return "\n\n".join(_table(setting, by_setting[setting]) for setting in sorted(by_setting))


_COLUMNS: dict[str, list[tuple[str, str, Callable[[float], str]]]] = {
    "novels": [("perplexity", "perplexity", "{:.3f}".format)],
    "retrieval": [
        ("answers right", "answer_accuracy", "{:.1%}".format),
        ("loss", "answer_loss", "{:.3f}".format),
        ("facts kept", "facts_kept_fraction", "{:.1%}".format),
        ("before", "facts_kept_before", "{:.1%}".format),
    ],
}


def _table(setting: tuple[Any, ...], found: Sequence[rows.Row]) -> str:
    task, context, keep_fraction, learning_rate = setting
    by_policy: dict[tuple[str, int, str], list[rows.Row]] = {}
    for row in found:
        by_policy.setdefault((row["policy"], row["steps"], json.dumps(row.get("changed", {}))), []).append(row)
    metric = "perplexity" if task == "novels" else "answer_loss"
    references = [_by_seed(by_policy, name, metric) for name in ("dense", "dense-same-loss")]
    head = ["policy", "steps", "seeds", *(title for title, _, _ in _COLUMNS[task]), "over dense", "over same loss"]
    lines = [f"{task}, {context} tokens, {keep_fraction:.0%} kept, rate {learning_rate:g}", " | ".join(head)]
    ordered = sorted(by_policy.items(), key=lambda entry: statistics.mean(row[metric] for row in entry[1]))
    for (policy, steps, changed), same in ordered:
        cells = [policy + ("" if changed == "{}" else f" {changed}"), str(steps), str(len(same))]
        for _, name, shown in _COLUMNS[task]:
            values = [row[name] for row in same if row.get(name) is not None]
            cells.append(shown(statistics.mean(values)) if values else "")
        cells += [_over(same, reference, metric) for reference in references]
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def _by_seed(by_policy: dict[tuple[str, int, str], list[rows.Row]], policy: str, metric: str) -> dict[int, float]:
    return {row["seed"]: row[metric] for (name, _, _), same in by_policy.items() if name == policy for row in same}


def _over(same: Sequence[rows.Row], reference: dict[int, float], metric: str) -> str:
    """The mean relative difference over the seeds that both have."""
    pairs = [(row[metric], reference[row["seed"]]) for row in same if row["seed"] in reference]
    return f"{statistics.mean(value / base for value, base in pairs) - 1:+.2%}" if pairs else ""


def _line(row: rows.Row) -> str:
    metric = "perplexity" if row["task"] == "novels" else "answer_accuracy"
    step = "" if row["step_ms_median"] is None else f", {row['step_ms_median']:.0f} ms a step"
    return (
        f"{row['policy']:>22} seed {row['seed']}, {row['steps']} steps: {metric} {row[metric]:.3f}{step}, "
        f"peak {row['peak_bytes'] / 2**30:.2f} GiB"
    )

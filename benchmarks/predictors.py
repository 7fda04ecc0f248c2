"""How well do predictors choose, how large are they, and what do they cost?

    python -m benchmarks predictors --model FOLDER --train A.txt B.txt --eval C.txt --out results.json

For each context length and entry layer: train a predictor on the frozen model over windows of the training texts, then
compare its choice of blocks with that of exact scores on windows of unseen texts. A row says recall and precision of
the blocks that nothing but their score decides about, what the last blocks and blind choice would recall, the size
after elastic pruning, the time to train, and the time of one scoring.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, rows
from benchmarks.quality import Texts
from jenga_core.config import JengaConfig
from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.finetuning.data import collator
from jenga_core.finetuning.predictors import samples_at, train_predictors
from jenga_core.finetuning.pretrained import load_model, training_device
from jenga_core.patching.apply import JengaHandle, apply_jenga
from jenga_core.prediction.predictor import Predictors
from jenga_core.prediction.training import measure


def run_one(arguments: argparse.Namespace, texts: Texts, layer: int | None, seed: int) -> dict[str, Any]:
    """Train and measure one predictor; the row of the results file."""
    device = training_device()
    config = JengaConfig.parse(
        {
            **arguments.jenga,
            "context_length_tokens": arguments.context,
            "selection": {"entry_layer": layer, "score": "exact", **arguments.jenga.get("selection", {})},
            **(
                {"rope": {"type": "linear", "factor": arguments.context / texts.own_context}}
                if arguments.context > texts.own_context
                else {}
            ),
        }
    )
    model = load_model(arguments.model, config, device)
    handle = apply_jenga(model, config)
    collate = collator(texts.tokenizer)
    started = time.perf_counter()
    predictors, reports = train_predictors(handle, texts.training, collate, seed=seed)
    seconds = time.perf_counter() - started
    (chosen,) = handle.selecting_layers
    count = min(arguments.held_out_windows, len(texts.held_out))
    spread = [texts.held_out[index * len(texts.held_out) // count] for index in range(count)]
    samples, _ = samples_at(handle, chosen, [collate([sequence]) for sequence in spread])
    found = measure(predictors[chosen], samples, config.selection)
    return {
        "context": arguments.context,
        "layer": chosen,
        "seed": seed,
        "held_out_windows": count,
        "recall": found.recall,
        "precision": found.precision,
        "score_share": found.score_share,
        "recent": found.recent,
        "chance": found.chance,
        "counted_blocks": found.wanted,
        "recall_on_training_texts": reports[chosen].recall,
        "parameters": predictors.num_parameters,
        "parameter_fraction": predictors.num_parameters / sum(weight.numel() for weight in model.parameters()),
        "query_hidden": predictors[chosen].query.hidden,
        "key_hidden": predictors[chosen].key.hidden,
        "training_seconds": seconds,
        "predicted_ms": _scoring_ms(handle, predictors, arguments.context, chosen),
        "config": config.model_dump(mode="json"),
        **environment.describe(),
    }


def _scoring_ms(handle: JengaHandle, predictors: Predictors, context: int, layer: int) -> float:
    """Of one sequence."""
    device = next(handle.parts.causal_lm.parameters()).device
    x_BTE = torch.randn(1, context, predictors[layer].hidden_size, device=device, dtype=handle.parts.head.weight.dtype)
    blocks = split_into_blocks(1, context, block_tokens=handle.config.selection.block_tokens, device=device)
    return _median_ms(lambda: predictors[layer].scores(x_BTE, blocks, column="mean"), device)


def _median_ms(run: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken[2:])


def main(argv: list[str]) -> int:
    """Run what is missing from the results file and print a line per row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks predictors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="UTF-8 texts to learn from")
    parser.add_argument("--eval", type=Path, nargs="+", required=True, help="UTF-8 texts to measure on")
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON list)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--layers", type=int, nargs="+", help="entry layers; default: the config's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--held-out-windows", type=int, default=16)
    parser.add_argument("--jenga", type=json.loads, default={}, help="more JengaConfig fields, as JSON")
    arguments = parser.parse_args(argv)
    for context in arguments.contexts:
        arguments.context, arguments.task = context, "novels"
        texts = Texts(arguments)
        for layer in arguments.layers or [None]:
            for seed in arguments.seeds:
                found = rows.read(arguments.out)
                if not _is_done(found, context, layer, seed, arguments.jenga):
                    row = {"asked_layer": layer, "changed": arguments.jenga, **run_one(arguments, texts, layer, seed)}
                    arguments.out.write_text(json.dumps([*found, row], indent=1) + "\n", encoding="utf-8")
                    print(_line(row), flush=True)
    return 0


def _is_done(found: Sequence[rows.Row], context: int, layer: int | None, seed: int, changed: dict[str, Any]) -> bool:
    key = (context, layer, seed, changed)
    return any((row["context"], row["asked_layer"], row["seed"], row["changed"]) == key for row in found)


def _line(row: rows.Row) -> str:
    return (
        f"{row['context']} tokens, layer {row['layer']}, seed {row['seed']}: recall {row['recall']:.1%} "
        f"(last blocks {row['recent']:.1%}, chance {row['chance']:.1%}), {row['parameter_fraction']:.2%} of the model, "
        f"trained in {row['training_seconds']:.0f} s, {row['predicted_ms']:.2f} ms a scoring"
    )

"""What does a step cost? Time and peak memory of one training step, on random weights of a real model's shape.

    python -m benchmarks speed --out results.json --model llama-3-8b --tokens 8192 32768

Batch 1, LoRA r = 8 on attention, bfloat16 weights frozen, float32 adapter, AdamW; forward, backward and optimizer step.
Peak is the CUDA allocator's high-water mark over whole steps. Every policy runs in a process of its own, alone on the
GPU, with PyTorch's own choice of attention backend, so that rows of one run can be compared. `lora` is PEFT on
transformers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import environment
from jenga_core.config import JengaConfig
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.memory.accounting import peak_bytes, reset_peak
from jenga_core.patching.apply import apply_jenga

LLAMA = {"rms_norm_eps": 1e-5, "max_position_embeddings": 131072}
SHAPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama-3-8b": (
        "llama",
        {
            **LLAMA,
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "llama-2-7b": (
        "llama",
        {
            **LLAMA,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    ),
    "tiny": (
        "llama",
        {
            **LLAMA,
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
}
"""model_type and the fields of its transformers config."""

POLICIES: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "lora": ({"preset": "lora"}, False),
    "lora+checkpointing": ({"preset": "lora"}, True),
    "carried": ({"selection": {"below_entry": "involved"}}, False),
    "deferred": ({}, False),
}
"""JengaConfig fields, and whether gradient checkpointing is on."""


def run_one(shape: str, tokens: int, policy: str, keep_fraction: float, steps: int) -> dict[str, Any]:
    """One policy at one length: the row of the results file."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fields, checkpointing = POLICIES[policy]
    fields = json.loads(json.dumps(fields))
    fields.setdefault("selection", {})["keep_fraction"] = keep_fraction
    config = JengaConfig.parse(fields)
    model_type, overrides = SHAPES[shape]
    torch.manual_seed(0)
    with device:
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **overrides), dtype=torch.bfloat16)
    base.requires_grad_(False)
    model = add_adapter(base, config.lora)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    apply_jenga(model, config)
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    input_ids = torch.randint(base.config.vocab_size, (1, tokens), device=device)

    def step() -> None:
        model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    row = {"model": shape, "tokens": tokens, "policy": policy, "keep_fraction": keep_fraction, **environment.describe()}
    try:
        for _ in range(2):
            step()
        reset_peak(device)
        times = sorted(_timed(step, device) for _ in range(steps))
    except torch.OutOfMemoryError:
        return {**row, "out_of_memory": True}
    return {
        **row,
        "step_ms_p20": times[len(times) // 5],
        "step_ms_p50": statistics.median(times),
        "step_ms_p80": times[-1 - len(times) // 5],
        "peak_bytes": peak_bytes(device),
        "weights_bytes": sum(parameter.nbytes for parameter in model.parameters()),
    }


def _timed(step: Any, device: torch.device) -> float:
    """Milliseconds."""
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        return 1000 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def main(argv: list[str]) -> int:
    """Run what is missing from the results file, one process after the other; print a line per row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="results file (JSON list)")
    parser.add_argument("--model", default="llama-3-8b", choices=list(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--keep-fraction", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--one", nargs=2, metavar=("TOKENS", "POLICY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        tokens, policy = int(arguments.one[0]), arguments.one[1]
        print(json.dumps(run_one(arguments.model, tokens, policy, arguments.keep_fraction, arguments.steps)))
        return 0
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    done = {(row["model"], row["tokens"], row["policy"], row["keep_fraction"]) for row in rows}
    for tokens in arguments.tokens:
        for policy in arguments.policies:
            if (arguments.model, tokens, policy, arguments.keep_fraction) in done:
                continue
            command = [sys.executable, "-m", "benchmarks", "speed", *argv, "--one", str(tokens), policy]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows.append(json.loads(output.strip().splitlines()[-1]))
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(_line(rows[-1]), flush=True)
    return 0


def _line(row: Mapping[str, Any]) -> str:
    name = f"{row['model']} {row['tokens']:>6} {row['policy']:>20} keep {row['keep_fraction']}"
    if row.get("out_of_memory"):
        return f"{name}: out of memory"
    return (
        f"{name}: {row['step_ms_p50']:.0f} ms ({row['step_ms_p20']:.0f}-{row['step_ms_p80']:.0f}), "
        f"peak {row['peak_bytes'] / 2**30:.1f} GiB"
    )

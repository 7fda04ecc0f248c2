"""Two ranks train what one would with twice the batch; they stay equal, stop together, and rank 0 alone saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from jenga_core import JengaConfig, apply_jenga
from jenga_core.finetuning import parallel
from jenga_core.finetuning.adapters import add_adapter
from jenga_core.finetuning.data import Encoded, collator, encode_file
from jenga_core.finetuning.parallel import ALONE, Ranks
from jenga_core.finetuning.trainer import finetune, make_plan
from tests.support.tiny import tiny_model, tiny_tokenizer

STEPS = 4


class Watcher:
    """Remembers losses and checkpoints; may ask to stop."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.losses: list[float] = []
        self.saved: list[int] = []
        self.stop_at = stop_at

    def step_done(self, step: int, *, train_loss: float, **_: Any) -> None:
        self.losses.append(train_loss)

    def checkpoint_saved(self, step: int, folder: Path) -> None:
        self.saved.append(step)

    def save_state(self, folder: Path) -> None: ...

    def should_stop(self) -> bool:
        return self.stop_at is not None and len(self.losses) + 1 >= self.stop_at


def train(folder: Path, ranks: Ranks, *, batch_size: int, stop_at: int | None = None) -> dict[str, Any]:
    """Two windows of 64 tokens, seen in every step: by one process as a batch of two, or by a rank each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"text": ("the quick brown fox jumps. " * 10)[:127]}) + "\n")
    data: Encoded = encode_file(rows, tiny_tokenizer(), context_length_tokens=64, cache_folder=folder / "cache")
    assert len(data.sequences) == 2
    config = JengaConfig.preset(
        "lora",  # every token carries loss: the mean over ranks is the mean over the batch
        context_length_tokens=64,
        learning_rate=1e-2,
        max_steps=STEPS,
        checkpoint_steps=2,
    )
    base = tiny_model()
    base.requires_grad_(False)
    torch.manual_seed(0)
    model = add_adapter(base, config.lora)
    apply_jenga(model, config)
    watcher = Watcher(stop_at)
    plan = make_plan(config, {"batch_size": batch_size}, num_sequences=2 // ranks.size)
    finished = finetune(
        model, data, collator(tiny_tokenizer()), config, plan,
        seed=7, checkpoint_folder=folder / "checkpoints", watcher=watcher, ranks=ranks,
    )  # fmt: skip
    return {
        "losses": watcher.losses,
        "saved": watcher.saved,
        "tokens": finished.trained_tokens,
        "adapter": {name: each for name, each in model.named_parameters() if each.requires_grad},
    }


def one_rank(rank: int, folder: Path, stop_at: int | None) -> None:
    """The body of a rank's process."""
    torch.set_num_threads(1)
    ranks = parallel.join(rank, 2, folder / "rendezvous", torch.device("cpu"))
    found = train(folder / str(rank), ranks, batch_size=1, stop_at=stop_at if rank == 1 else None)
    torch.save(found, folder / f"{rank}.pt")
    parallel.leave()


def run_two(folder: Path, stop_at: int | None = None) -> list[dict[str, Any]]:
    code = (
        "import sys; from pathlib import Path; from tests.finetuning.test_parallel import one_rank; "
        "one_rank(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) or None)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(folder), str(stop_at or 0)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_ranks_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    first, second = run_two(tmp_path)
    whole = train(tmp_path / "whole", ALONE, batch_size=2)
    assert first["losses"] == second["losses"]
    torch.testing.assert_close(first["losses"], whole["losses"], rtol=1e-5, atol=1e-6)
    for name, parameter in first["adapter"].items():
        assert torch.equal(parameter, second["adapter"][name]), name
        torch.testing.assert_close(parameter, whole["adapter"][name], rtol=1e-3, atol=1e-5)
    assert (first["saved"], second["saved"]) == ([2, 4], [])
    assert first["tokens"] == whole["tokens"]


@pytest.mark.slow
def test_what_one_rank_wants_all_of_them_do(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, stop_at=3)
    assert len(first["losses"]) == len(second["losses"]) == 3
    assert first["saved"] == [2, 3]


def test_shares_cover_the_data_and_are_equally_long() -> None:
    sequences = Dataset.from_dict({"n": list(range(7))})
    shares = [Ranks(rank, 3).share(sequences)["n"] for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 3, 6], [1, 4, 0], [2, 5, 1]]
    assert ALONE.share(sequences) is sequences

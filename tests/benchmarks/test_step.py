"""One row of the speed table, on a CPU."""

from __future__ import annotations

import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch

from benchmarks import step
from benchmarks.contenders import POLICIES, prepare
from benchmarks.shapes import SHAPES, make_model
from benchmarks.step import Clock, Spec, Step, attention_backends, measure, quantile, selection_ranges

CPU = torch.device("cpu")
TOKENS = 256


def spec(policy: str, *, model: str = "tiny", recompute: str | None = None) -> Spec:
    chosen = POLICIES[policy]
    return Spec(model, TOKENS, policy, 0.4 if chosen.is_sparse else 1.0, recompute or chosen.recomputes()[0])


@pytest.mark.parametrize("policy", [name for name, policy in POLICIES.items() if not policy.uses_liger])
def test_every_policy_gives_a_row(policy: str) -> None:
    row = measure(spec(policy), 2, CPU)
    assert Spec.of(row) == spec(policy)
    assert row["step_ms_p20"] <= row["step_ms_p50"] <= row["step_ms_p80"]
    assert len(row["step_ms_all"]) == 4  # twice as many where they are fast
    assert row["loss"] == pytest.approx(torch.tensor(SHAPES["tiny"].vocabulary).log().item(), abs=0.3)
    assert row["weights_bytes"] > 2 * 200_000
    assert row["attention_backends"]
    assert {"hardware", "driver", "torch", "commit", "date"} <= row.keys()


def test_a_sparse_row_says_what_it_kept_and_what_choosing_took() -> None:
    row = measure(spec("jenga"), 1, CPU)
    assert row["involved"]["tokens"] == 128  # 2 of 4 blocks of 64
    assert row["mean_kept_fraction"] == 0.5
    assert row["entry_layer"] == 2
    assert 0 < row["selection_ms"] < row["step_ms_p80"]
    assert row["config"]["selection"]["keep_fraction"] == 0.4


def test_opt_has_a_row_and_no_liger_kernels() -> None:
    assert "step_ms_p50" in measure(spec("lora", model="tiny-opt"), 1, CPU)
    row = measure(spec("lora+liger", model="tiny-opt"), 1, CPU)
    assert row["unsupported"] == "Liger has no kernels for opt"
    assert "step_ms_p50" not in row


def test_liger_is_put_into_the_model() -> None:
    """In a process of its own: Liger also replaces a function of transformers' module."""
    pytest.importorskip("liger_kernel")
    program = (
        "import torch; from benchmarks.contenders import *; from benchmarks.shapes import *;"
        "shape = SHAPES['tiny']; base = make_model(shape, 64, torch.device('cpu'));"
        "prepare(POLICIES['lora+liger'], base, shape, tokens=64, keep_fraction=1.0, recompute='none');"
        "from transformers.models.llama import modeling_llama;"
        "parts = base, base.model.norm, base.model.layers[0].mlp;"
        "functions = [part.forward.__func__ for part in parts] + [modeling_llama.apply_rotary_pos_emb];"
        "print([function.__module__.split('.')[0] for function in functions])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["liger_kernel"] * 4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_running_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def too_large(*_: Any) -> None:
        raise error("CUDA out of memory. Tried to allocate 3.91 GiB. GPU 0 has a total capacity of ...")

    monkeypatch.setattr(step.Step, "__call__", too_large)
    row = measure(spec("lora"), 5, CPU)
    assert row["out_of_memory"] == "CUDA out of memory. Tried to allocate 3.91 GiB"
    assert "step_ms_p50" not in row


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(step.Step, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure(spec("lora"), 5, CPU)


def test_a_loss_that_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step.Step, "__call__", lambda _: torch.tensor(torch.nan))
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        measure(spec("lora"), 5, CPU)


def test_logits_are_gone_before_backward() -> None:
    base = make_model(SHAPES["tiny"], TOKENS, CPU)
    model = prepare(POLICIES["lora"], base, SHAPES["tiny"], tokens=TOKENS, keep_fraction=1.0, recompute="none").model
    seen: list[Any] = []
    alive: list[bool] = []
    base.lm_head.register_forward_hook(lambda _module, _arguments, output: seen.append(weakref.ref(output)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained[-1].register_hook(lambda _: alive.append(seen[0]() is not None))
    Step(model, SHAPES["tiny"], TOKENS, CPU)()
    assert alive == [False]


def test_plain_lora_loads_no_code_of_ours() -> None:
    program = (
        "import sys, torch; from benchmarks.step import Spec, measure;"
        f"measure(Spec('tiny', {TOKENS}, 'lora+checkpoint', 1.0, 'full'), 1, torch.device('cpu'));"
        "print([name for name in sys.modules if name.startswith('jenga')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_selection_is_timed_only_inside_the_block() -> None:
    from jenga_core.patching.involvement import Involvement

    before = Involvement.selection_at
    with selection_ranges(Clock(CPU)) as ranges:
        measure(spec("jenga"), 1, CPU)
    assert ranges
    assert Involvement.selection_at is before


def test_backends_are_named_as_pytorch_names_them() -> None:
    q = torch.randn(1, 2, 8, 4)
    with attention_backends() as found:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert found == {"flash_for_cpu": 2}


def test_quantiles_are_measured_values() -> None:
    assert [quantile([5.0, 1.0, 4.0, 2.0, 3.0], share) for share in (0.2, 0.5, 0.8)] == [2.0, 3.0, 4.0]
    assert [quantile([2.0, 1.0, 3.0], share) for share in (0.2, 0.5, 0.8)] == [1.0, 2.0, 3.0]
    assert quantile([7.0], 0.8) == 7.0

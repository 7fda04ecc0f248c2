"""The estimate: what it is made of, that it moves the right way, and what it suggests."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jenga_core.config import JengaConfig
from jenga_core.errors import ConfigError
from jenga_core.layers import gated_mlp
from jenga_core.memory import estimate as counted
from jenga_core.memory.estimate import CONTEXT_BYTES, MemoryEstimate, estimate
from jenga_core.memory.fitting import longest_context, smallest_change
from jenga_core.memory.model_shape import ModelShape

GIB = 2**30
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SHAPE = ModelShape.from_config(LLAMA_8B)


def config(**given: Any) -> JengaConfig:
    return JengaConfig.parse({"context_length_tokens": 8192, **given})


def expected(**given: Any) -> int:
    return estimate(SHAPE, config(**given)).expected_bytes


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        (LLAMA_8B, 8_030_261_248),
        (
            # Qwen3-8B has a head size of its own
            {
                **LLAMA_8B,
                "model_type": "qwen3",
                "vocab_size": 151936,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "head_dim": 128,
            },
            8_190_000_000,
        ),
        (
            {
                "model_type": "opt",
                "vocab_size": 50272,
                "hidden_size": 2048,
                "ffn_dim": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
            },
            1_311_000_000,
        ),
        (
            # SmolLM2-135M: tied
            {
                "model_type": "llama",
                "vocab_size": 49152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "tie_word_embeddings": True,
            },
            134_515_008,
        ),
    ],
)
def test_parameters_are_counted_from_the_shapes(fields: dict[str, Any], parameters: int) -> None:
    shape = ModelShape.from_config(fields)
    assert shape.parameters == pytest.approx(parameters, rel=0.005)
    assert ModelShape.from_config(fields, parameters=7).parameters == 7


def test_a_config_that_lacks_a_field_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no intermediate_size and no ffn_dim"):
        ModelShape.from_config({key: value for key, value in LLAMA_8B.items() if key != "intermediate_size"})
    with pytest.raises(ConfigError, match="hidden_size must be a positive number, got 'wide'"):
        ModelShape.from_config({**LLAMA_8B, "hidden_size": "wide"})
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        ModelShape.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a JSON object"):
        ModelShape.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert ModelShape.from_folder(tmp_path) == SHAPE


def test_kinds_sum_up_and_a_device_needs_more_than_the_allocator_s_peak() -> None:
    found = estimate(SHAPE, config())
    assert found.expected_bytes == sum(found.by_kind.values())
    assert set(found.by_kind) == {
        "weights",
        "adapter_and_optimizer",
        "activations",
        "waiting",
        "loss",
        "temporaries",
        "predictor",
        "runtime",
    }
    assert found.low_bytes < found.expected_bytes < found.high_bytes
    assert found.by_kind["weights"] == 2 * SHAPE.parameters
    assert found.by_kind["adapter_and_optimizer"] == 16 * 8 * 32 * (4 * 4096 + 2 * (4096 + 1024))
    assert found.device_bytes == found.expected_bytes + CONTEXT_BYTES


def test_activations_of_a_dense_layer_by_hand() -> None:
    """Per row: x, x_mid; q, attention out; k, v; gate, up, in bfloat16; and a log-sum-exp per head."""
    row = 2 * (2 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 14336) + 4 * 32
    assert estimate(SHAPE, config(preset="lora")).by_kind["activations"] == 32 * 8192 * row
    without_mlp = row - 2 * 2 * 14336
    assert estimate(SHAPE, config(preset="lora", recompute="mlp")).by_kind["activations"] == 32 * 8192 * without_mlp


def test_deferred_selection_keeps_little_below_the_entry_layer() -> None:
    kept = 52 * 64  # ceil(0.4 x 128) blocks
    row = 2 * (2 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 14336) + 4 * 32
    below = 2 * (4096 + 4096) + 4 * 32
    assert estimate(SHAPE, config()).by_kind["activations"] == 13 * kept * row + 19 * (
        kept * below + 8192 * 2 * 2 * 1024
    )


def measured_rows() -> list[dict[str, Any]]:
    """What steps of our own really took, from the committed speed table."""
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "speed-llama-3-8b-h100.json"
    rows = json.loads(results.read_text())["rows"]
    return [row for row in rows if row["policy"] in ("jenga", "jenga-lora") and "peak_bytes" in row]


@pytest.mark.parametrize(
    "row", measured_rows(), ids=lambda row: f"{row['policy']}-{row['tokens']}-{row['keep_fraction']}-{row['recompute']}"
)
def test_it_foretells_what_was_measured(row: dict[str, Any]) -> None:
    recompute = (
        {"recompute": "full", "offload": True} if row["recompute"] == "offload" else {"recompute": row["recompute"]}
    )
    fields: dict[str, Any] = {"context_length_tokens": row["tokens"], **recompute}
    if row["policy"] == "jenga":
        chosen_at = row.get("entry_layer")  # not told of a step that ran out of memory
        fields["selection"] = {"keep_fraction": row["keep_fraction"], "score": "exact", "entry_layer": chosen_at}
    else:
        fields["preset"] = "lora"
    found = estimate(SHAPE, JengaConfig.parse(fields))
    if "out_of_memory" in row:
        assert found.device_bytes > row["free_bytes_before"]
        return
    assert found.low_bytes <= row["peak_bytes"] <= found.high_bytes
    assert found.expected_bytes == pytest.approx(row["peak_bytes"], rel=0.05)


def test_more_of_anything_needs_more_and_every_saving_saves() -> None:
    assert expected(preset="lora", fused=False) > expected(preset="lora") > expected()
    assert (
        expected(preset="lora") > expected(preset="lora", recompute="mlp") > expected(preset="lora", recompute="full")
    )
    assert expected(selection={"below_entry": "involved"}) > expected()
    assert expected(selection={"unselected": "forward_only"}) > expected(recompute="full")
    assert expected(context_length_tokens=16384) > expected()
    assert expected(keep_fraction=0.7) > expected() > expected(keep_fraction=0.2)
    assert expected(lora={"r": 64}) > expected()
    assert expected(lora={"target_modules": ["q_proj", "gate_proj"]}) > expected(lora={"target_modules": ["q_proj"]})
    assert expected(selection={"mlp_keep_fraction": 0.5}) < expected()
    assert expected(selection={"loss_on": "all"}) >= expected()
    two = estimate(SHAPE, config(), batch_size=2).expected_bytes
    assert two > expected()
    adam, sgd = (estimate(SHAPE, config(), optimizer=each).expected_bytes for each in ("adamw", "sgd"))
    assert adam > sgd


def test_the_published_peak_of_the_layers_left_alone_is_met() -> None:
    """PEFT on transformers at 8K was measured at 76.9 GiB."""
    assert expected(preset="lora", fused=False) / GIB == pytest.approx(76.9, rel=0.05)


def test_what_thresholds_will_keep_is_not_known_and_the_range_says_so() -> None:
    fraction, threshold = (estimate(SHAPE, config(preset=name)) for name in ("jenga", "jenga-paper"))
    assert threshold.high_bytes / threshold.low_bytes > 1.5 > fraction.high_bytes / fraction.low_bytes


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer 'lion' is not known; known are 'adamw', 'sgd'"):
        estimate(SHAPE, config(), optimizer="lion")
    with pytest.raises(ConfigError, match="device kind 'tpu'"):
        estimate(SHAPE, config(), device_kind="tpu")
    assert estimate(SHAPE, config(), device_kind="cpu").by_kind["weights"] == 4 * SHAPE.parameters


@pytest.mark.parametrize("capacity_gib", [24, 80, 141])
def test_the_longest_context_fits_and_one_block_more_does_not(capacity_gib: int) -> None:
    tokens = longest_context(SHAPE, config(), 1, capacity_gib * GIB)
    assert tokens % 64 == 0
    at, above = (estimate(SHAPE, config(context_length_tokens=each)).device_bytes for each in (tokens, tokens + 64))
    assert at <= capacity_gib * GIB < above


def test_nothing_fits_a_gpu_that_is_smaller_than_the_weights() -> None:
    assert longest_context(SHAPE, config(), 1, 8 * GIB) == 0
    assert smallest_change(SHAPE, config(), 1, 8 * GIB) is None


def test_the_smallest_change_that_fits_is_named() -> None:
    lora = config(preset="lora", fused=True)
    full, mlp = (estimate(SHAPE, config(preset="lora", recompute=each)).device_bytes for each in ("full", "mlp"))
    assert smallest_change(SHAPE, lora, 1, mlp) == "recompute='mlp'"
    assert smallest_change(SHAPE, lora, 1, mlp - 1) == "recompute='full'"
    assert smallest_change(SHAPE, lora, 4, estimate(SHAPE, lora, 4).device_bytes - 1) == "recompute='mlp'"
    assert smallest_change(SHAPE, lora, 1, full - 1) == "recompute='full' and offload=True"
    assert smallest_change(SHAPE, config(preset="lora", recompute="full"), 1, full - 1) == "offload=True"
    leanest = config(preset="lora", recompute="full", offload=True)
    least = estimate(SHAPE, leanest).device_bytes
    assert smallest_change(SHAPE, leanest, 4, least) == "batch_size 1 and gradient_accumulation_steps 4"
    assert smallest_change(SHAPE, leanest, 1, least - 1) == "preset='jenga' with keep_fraction 0.3"
    dropping_out = config(preset="lora", lora={"dropout": 0.1}, recompute="mlp")
    least = estimate(SHAPE, dropping_out).device_bytes
    assert smallest_change(SHAPE, dropping_out, 1, least - 1) == "preset='jenga' with keep_fraction 0.3"
    tight = smallest_change(SHAPE, config(context_length_tokens=2**24), 1, 24 * GIB)
    assert tight is not None
    assert tight.startswith("recompute='full' and offload=True, batch_size 1 and context_length_tokens ")


@pytest.mark.parametrize("changes", [{}, {"preset": "lora"}, {"selection": {"unselected": "forward_only"}}], ids=str)
def test_offload_moves_the_activations_to_the_host(changes: dict[str, object]) -> None:
    def found(device_kind: str = "cuda", **more: object) -> MemoryEstimate:
        asked = config(**changes, recompute="full", context_length_tokens=65536, **more)
        return estimate(SHAPE, asked, device_kind=device_kind)

    full, offload = found(), found(offload=True)
    assert full.host_bytes == 0
    assert offload.expected_bytes < full.expected_bytes
    assert offload.host_bytes >= full.by_kind["activations"] + full.by_kind["waiting"]
    assert offload.by_kind["activations"] + offload.by_kind["waiting"] < offload.host_bytes / 5
    assert found("cpu", offload=True) == found("cpu")


@given(
    tokens=st.integers(16, 2**17),
    keep=st.floats(0.01, 1),
    batch=st.integers(1, 8),
    recompute=st.sampled_from(["none", "mlp", "full"]),
    below=st.sampled_from(["forward_only", "involved"]),
    block=st.sampled_from([16, 64, 256]),
)
def test_whatever_is_asked_the_numbers_are_in_order(
    tokens: int, keep: float, batch: int, recompute: str, below: str, block: int
) -> None:
    asked = config(
        context_length_tokens=tokens,
        recompute=recompute,
        selection={"keep_fraction": keep, "below_entry": below, "block_tokens": block},
    )
    found = estimate(SHAPE, asked, batch)
    assert 0 < found.low_bytes <= found.expected_bytes <= found.high_bytes
    assert all(size >= 0 for size in found.by_kind.values())
    assert found.expected_bytes >= 2 * SHAPE.parameters


def test_it_is_torch_free() -> None:
    import subprocess

    code = "import sys, jenga_core.memory.estimate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mlp_chunks_are_those_of_the_layer() -> None:
    """The estimate is torch-free and so keeps the number itself."""
    assert counted.CHUNK_ROWS == gated_mlp.CHUNK_ROWS


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"fused": False}, "mlp"),
        ({"lora": {"target_modules": ["q_proj", "up_proj"]}}, "mlp"),
        ({"lora": {"dropout": 0.1}}, "full"),
    ],
    ids=str,
)
def test_no_change_is_advised_that_would_be_refused(fields: dict[str, Any], refused: str) -> None:
    start = config(context_length_tokens=2**16, **fields)
    for gib in range(16, 120, 2):
        assert f"recompute={refused!r}" not in (smallest_change(SHAPE, start, 4, gib * GIB) or "")


def test_opt_is_never_told_to_recompute_its_mlp() -> None:
    opt = replace(SHAPE, model_type="opt")
    for gib in range(16, 120, 2):
        assert "'mlp'" not in (smallest_change(opt, config(context_length_tokens=2**16), 1, gib * GIB) or "")


def test_fewer_mlp_rows_save_above_the_entry_layer_alone() -> None:
    given = {"below_entry": "involved", "entry_layer": 31}
    whole, quarter = (
        estimate(SHAPE, config(selection={**given, "mlp_keep_fraction": share})).by_kind["activations"]
        for share in (1.0, 0.25)
    )
    rows = math.ceil(0.4 * 128) * 64
    assert whole - quarter == pytest.approx(0.75 * 2 * 2 * 14336 * rows, rel=1e-6)


@pytest.mark.parametrize("layers", [6, 26, 34, 48])
@pytest.mark.parametrize("named", [True, False])
def test_the_layer_that_chooses_is_the_models(layers: int, named: bool) -> None:
    """Sliding layers do not choose, whether config.json names them or transformers works them out."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from jenga_core.patching.parts import parts_of

    config = Gemma3TextConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    entry = parts_of(Gemma3ForCausalLM(config)).default_entry_layer
    written = config.to_dict()
    if not named:
        written.pop("layer_types")
    shape = ModelShape.from_config(written)

    def needed(**selection: int) -> int:
        return estimate(
            shape, JengaConfig.parse({"context_length_tokens": 4096, "selection": selection})
        ).expected_bytes

    assert needed() == needed(entry_layer=entry)
    assert needed() not in {needed(entry_layer=other) for other in range(1, layers) if other != entry}


def test_rounding_keeps_no_block_more() -> None:
    rounded, below = (
        estimate(SHAPE, config(context_length_tokens=6400, keep_fraction=fraction)) for fraction in (0.07, 0.0699)
    )
    assert rounded == below

"""A step's trace, added up."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.trace import PREFIX, TRITON, Ran, busy_ms, kind_of, ran, summary


def annotation(name: str, start: float, end: float) -> dict[str, Any]:
    return {"cat": "user_annotation", "name": PREFIX + name, "ts": start, "dur": end - start}


def kernel(name: str, launched: float, start: float, duration: float, correlation: int) -> list[dict[str, Any]]:
    return [
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launched, "args": {"correlation": correlation}},
        {"cat": "kernel", "name": name, "ts": start, "dur": duration, "args": {"correlation": correlation}},
    ]


TRACE = [
    {"ph": "M", "name": "process_name"},
    annotation("forward", 0, 100),
    annotation("selection", 50, 60),
    annotation("loss", 100, 150),
    annotation("backward", 150, 200),
    annotation("optimizer", 200, 220),
    annotation(f"{TRITON}rows._norm", 38, 42),
    *kernel("nvjet_tst_128x256", 10, 1000, 300, 1),
    *kernel("_norm", 40, 1300, 10, 2),
    *kernel("_cells", 55, 1310, 20, 3),
    *kernel("nvjet_tst_128x256", 110, 1330, 50, 4),
    *kernel("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 160, 1400, 100, 5),
    *kernel("multi_tensor_apply_kernel", 210, 1500, 5, 6),
    {"cat": "gpu_memcpy", "name": "Memcpy DtoD", "ts": 1600, "dur": 7, "args": {}},
]


def test_every_kernel_counts_once_by_kind_and_phase_of_its_launch() -> None:
    found = [(item.kind, item.phase) for item in ran(TRACE)]
    assert found == [
        ("GEMM", "forward"),
        ("norm", "forward"),
        ("selection", "forward"),
        ("loss", "loss"),
        ("attention", "backward"),
        ("optimizer", "optimizer"),
        ("movement", "outside"),
    ]


def test_triton_kernels_are_named_by_their_module() -> None:
    assert [item.name for item in ran(TRACE)][1:3] == ["rows._norm", "_cells"]


def test_the_summary_adds_up() -> None:
    found = summary(ran(TRACE))
    assert found["ms_by_kind"]["GEMM"] == {"forward": pytest.approx(0.3)}
    assert list(found["ms_by_kind"])[:2] == ["GEMM", "attention"]
    total = sum(sum(phases.values()) for phases in found["ms_by_kind"].values())
    assert found["span_ms"] == pytest.approx(0.607)
    assert found["idle_ms"] == pytest.approx(0.607 - total)
    assert found["kernels"][0] == {"kind": "GEMM", "name": "nvjet_tst_128x256", "calls": 1, "ms": pytest.approx(0.3)}


def test_kernels_side_by_side_are_busy_once() -> None:
    side_by_side = [Ran("a", "GEMM", "forward", 0, 1000), Ran("b", "GEMM", "forward", 500, 1000)]
    assert busy_ms(side_by_side) == pytest.approx(1.5)
    assert busy_ms([*side_by_side, Ran("c", "GEMM", "forward", 100, 10)]) == pytest.approx(1.5)


def test_a_trace_without_kernels_is_an_error() -> None:
    with pytest.raises(ValueError, match="no kernel"):
        summary(ran([annotation("forward", 0, 1)]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7x", "attention"),
        ("void pytorch_flash::flash_bwd_kernel<cutlass::bfloat16_t>", "attention"),
        ("involved_attention._forward", "attention"),
        ("gated_activation._forward", "activation"),
        ("rows._norm_backward", "norm"),
        ("rows._add", "movement"),
        ("rotary._turn", "rotary"),
        ("cross_entropy._loss_and_gradient", "loss"),
        ("block_scores._cells", "selection"),
        ("rms_norm._rms_norm_forward_kernel", "norm"),
        ("swiglu._swiglu_backward_kernel", "activation"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "GEMM"),
        ("void cublasLt::splitKreduce_kernel<32, 16>", "GEMM"),
        ("void at::native::index_elementwise_kernel<128, 4>", "movement"),
        ("void at::native::vectorized_elementwise_kernel<4, silu_kernel>", "activation"),
        ("void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>", "movement"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<c10::BFloat16>>", "elementwise"),
        ("void at::native::reduce_kernel<512, 1>", "elementwise"),
        ("something_new", "other"),
    ],
)
def test_names_of_kernels(name: str, kind: str) -> None:
    assert kind_of(name) == kind

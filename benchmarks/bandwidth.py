"""Kernels that only move bytes: which share of the card's copy bandwidth do they reach, for the bytes that must move?

    row movement    the involved rows out of the residual stream and results back into it. `naive` is what one writes
                    first: index, zeros as large as the stream, scatter, add. `index_select` and `index_add_` are what
                    one writes next. Ours has no movement of its own: the norm reads the rows where they are, and
                    `add_rows` adds where they belong; beside it the same norm of rows that lie together, so that the
                    difference is what the movement costs.
    gated activation, rotary    beside plain PyTorch, and Liger where it is installed

Bytes: each input read once, each output written once, rows that are added to both. Naive forms are charged the same
bytes, so their rates say how much they move in vain.

Shapes   T tokens, G involved tokens, E hidden size, F intermediate size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention import Case, timed
from benchmarks.shapes import SHAPES

MODEL = "llama-3-8b"
LENGTHS = (8192, 65536)
KEEP_FRACTION = 0.4
EPSILON = 1e-5

Way = tuple[str, Callable[[], Any], int]
"""Name, what to time, bytes that must move."""


def rows() -> Iterator[dict[str, Any]]:
    """Every kernel and every other way, and the copy they are compared with."""
    device, shape = torch.device("cuda"), SHAPES[MODEL]
    for tokens in LENGTHS:
        x_TE = torch.randn(tokens, shape.hidden, device=device, dtype=torch.bfloat16)
        index_G = Case.random(SHAPES["tiny"], tokens, KEEP_FRACTION, device, torch.bfloat16).position_G
        target_TE = torch.empty_like(x_TE)
        copy = _rate("copy", lambda: target_TE.copy_(x_TE), 2 * x_TE.nbytes)  # noqa: B023
        ceiling = copy["gb_per_second"]
        about = {"model": MODEL, "tokens": tokens}
        yield {**about, **copy}
        gate_GF, up_GF = (
            torch.randn(index_G.shape[0], shape.intermediate, device=device, dtype=torch.bfloat16) for _ in range(2)
        )
        q_BHTD = torch.randn(1, shape.heads, tokens, shape.head_size, device=device, dtype=torch.bfloat16)
        for name, way, moved in (
            *movement(x_TE, index_G),
            *activation(gate_GF, up_GF),
            *rotation(q_BHTD),
        ):
            row = _rate(name, way, moved)
            yield {**about, **row, "share_of_copy": row["gb_per_second"] / ceiling}


def movement(x_TE: Tensor, index_G: Tensor) -> Iterator[Way]:
    """Rows out, and rows back."""
    from jenga_kernels.rows import add_rows, rms_norm, rms_norm_backward

    weight_E = torch.ones(x_TE.shape[1], device=x_TE.device, dtype=x_TE.dtype)
    rows_GE = x_TE[index_G].clone()
    row_bytes = rows_GE.nbytes
    into_TE, gradient_GE = x_TE.clone(), torch.randn_like(rows_GE)
    _, rstd_G = rms_norm(x_TE, weight_E, epsilon=EPSILON, index_G=index_G)

    def naive_round() -> Tensor:
        taken_GE = x_TE[index_G]
        return x_TE + torch.zeros_like(x_TE).index_put((index_G,), taken_GE)

    yield "movement: naive (index, zeros, scatter, add)", naive_round, 5 * row_bytes
    yield (
        "movement: index_select and index_add_",
        lambda: into_TE.index_add_(0, index_G, x_TE.index_select(0, index_G)),
        5 * row_bytes,
    )
    yield "rows back: naive (zeros, scatter, add)", lambda: naive_add(x_TE, rows_GE, index_G), 3 * row_bytes
    yield "rows back: index_add_", lambda: into_TE.index_add_(0, index_G, rows_GE), 3 * row_bytes
    yield "rows back: add_rows", lambda: add_rows(into_TE, rows_GE, index_G), 3 * row_bytes
    yield (
        "norm of rows: index, then PyTorch's",
        lambda: F.rms_norm(x_TE[index_G], (x_TE.shape[1],), weight_E, EPSILON),
        2 * row_bytes,
    )
    yield "norm of rows: rms_norm", lambda: rms_norm(x_TE, weight_E, epsilon=EPSILON, index_G=index_G), 2 * row_bytes
    yield (
        "norm of rows that lie together: rms_norm",
        lambda: rms_norm(rows_GE, weight_E, epsilon=EPSILON),
        2 * row_bytes,
    )
    yield (
        "gradient into rows: rms_norm_backward",
        lambda: rms_norm_backward(gradient_GE, x_TE, weight_E, rstd_G, index_G=index_G, into_RE=into_TE),
        4 * row_bytes,
    )


def naive_add(x_TE: Tensor, rows_GE: Tensor, index_G: Tensor) -> Tensor:
    """Zero-padded to the stream's size, then added."""
    return x_TE + torch.zeros_like(x_TE).index_put((index_G,), rows_GE)


def activation(gate_GF: Tensor, up_GF: Tensor) -> Iterator[Way]:
    """silu(gate) * up, and its gradient."""
    from jenga_kernels.gated_activation import gated_activation, gated_activation_backward

    wide = gate_GF.nbytes
    d_h_GF = torch.randn_like(gate_GF) / 64
    g_GF, u_GF = gate_GF.clone().requires_grad_(), up_GF.clone().requires_grad_()
    h_GF = F.silu(g_GF) * u_GF
    out_GF = torch.empty_like(gate_GF)
    yield (
        "gated_activation",
        lambda: gated_activation(gate_GF, up_GF, activation="silu", out_SF=out_GF),
        3 * wide,
    )
    overwritten = gate_GF.clone(), up_GF.clone()
    yield (
        "gated_activation_backward",
        lambda: gated_activation_backward(d_h_GF, *overwritten, activation="silu"),
        5 * wide,
    )
    yield "gated activation: PyTorch", lambda: F.silu(gate_GF) * up_GF, 3 * wide
    yield (
        "gated activation, backward: PyTorch",
        lambda: torch.autograd.grad(h_GF, (g_GF, u_GF), d_h_GF, retain_graph=True),
        5 * wide,
    )
    if find_spec("liger_kernel"):
        from liger_kernel.ops.swiglu import swiglu_backward, swiglu_forward

        yield "gated activation: Liger", lambda: swiglu_forward(gate_GF, up_GF), 3 * wide
        again = gate_GF.clone(), up_GF.clone()
        yield "gated activation, backward: Liger", lambda: swiglu_backward(*again, d_h_GF), 5 * wide


def rotation(q_BHTD: Tensor) -> Iterator[Way]:
    """Rotary positions of all queries."""
    from jenga_kernels.rotary import rotary

    T, D = q_BHTD.shape[2:]
    angle_BTD = torch.rand(1, T, D // 2, device=q_BHTD.device).repeat(1, 1, 2)
    cos_BTD, sin_BTD = angle_BTD.cos().to(q_BHTD.dtype), angle_BTD.sin().to(q_BHTD.dtype)

    def plain() -> Tensor:
        half = torch.cat((-q_BHTD[..., D // 2 :], q_BHTD[..., : D // 2]), dim=-1)
        return q_BHTD * cos_BTD[:, None] + half * sin_BTD[:, None]

    moved = 2 * q_BHTD.nbytes + 2 * cos_BTD.nbytes
    yield "rotary", lambda: rotary(q_BHTD, cos_BTD, sin_BTD), moved
    yield "rotary: PyTorch", plain, moved


def _rate(name: str, way: Callable[[], Any], moved_bytes: int) -> dict[str, Any]:
    found = timed(way, 0)
    del found["tflops"]
    return {"kernel": name, **found, "bytes": moved_bytes, "gb_per_second": moved_bytes / found["p50_ms"] / 1e6}

"""A layer whose output is known, as a node of the autograd graph: its forward costs nothing.

The exact pass over all tokens has computed each layer's output for the involved rows too. `replay` puts those rows into
the graph as if the layer had just made them. Backward runs the layer once more with gradient, from its saved input and
what was kept of its attention. Queries, norms, gate and up are recomputed; attention is not where its output was kept,
nor is anything that only the known output depends on. What is kept is the rows' input and attention output, and the
keys and values that they attended to, where the layer's own graph keeps about a dozen of the row's vectors.

The same node serves layers that compute all their rows but should save little (`recompute='full'`): the input alone.
With a HostMemory, what is kept waits there (memory/offload.py).

Shapes   B batch, G involved tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jenga_core.layers.attention import Attended
from jenga_core.layers.gated_mlp import output_unused
from jenga_core.memory.offload import HostMemory

Layer = Callable[[Tensor, Attended], Tensor]
"""From the rows that enter, and what is known of their attention, to the rows that leave, with gradient."""


def replay(
    layer: Layer,
    x_BGE: Tensor,
    y_BGE: Tensor,
    attended: Attended,
    parameters: Sequence[nn.Parameter],
    host: HostMemory | None = None,
) -> Tensor:
    """y with the gradient of layer(x): to x, and to the parameters.

    Args:
        layer: must compute y from x; it runs in backward only. Nothing in it may be random.
        x_BGE: rows that enter.
        y_BGE: rows that leave, known.
        attended: what was kept of these rows' attention.
        parameters: of the layer, those that are trained.
        host: where the input and what was kept wait for backward; None: on the device.
    """
    if not torch.is_grad_enabled() or not any(each.requires_grad for each in (x_BGE, *parameters)):
        return y_BGE
    y: Tensor = _Replay.apply(x_BGE, y_BGE, layer, attended, host, *parameters)
    return y


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        layer: Layer,
        attended: Attended,
        host: HostMemory | None,
        *parameters: nn.Parameter,
    ) -> Tensor:
        ctx.layer, ctx.sight = layer, attended.sight
        ctx.autocast = _autocast_of(x.device.type)
        kept: tuple[Tensor | None, ...] = x, *attended.tensors
        ctx.parcel = None
        if host is not None:
            ctx.layer_before = host.latest
            ctx.parcel, kept = host.put(kept), ()
        # With the parameters saved, autograd refuses any that were trained meanwhile.
        ctx.save_for_backward(*parameters, *kept)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        num_parameters = len(ctx.needs_input_grad) - 5
        parameters, kept = ctx.saved_tensors[:num_parameters], ctx.saved_tensors[num_parameters:]
        x, k, v, o, lse = kept if ctx.parcel is None else ctx.parcel.take(then=ctx.layer_before)
        x = x.detach().requires_grad_(ctx.needs_input_grad[0])
        wanted = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
        with torch.enable_grad(), ctx.autocast(), output_unused():
            y = ctx.layer(x, Attended(ctx.sight, k, v, o, lse))
        found = iter(torch.autograd.grad(y, wanted, dy, allow_unused=True))
        dx = next(found) if x.requires_grad else None
        dw = [next(found) if parameter.requires_grad else None for parameter in parameters]
        return (dx, None, None, None, None, *dw)


def _autocast_of(device_type: str) -> Callable[[], Any]:
    """Today's autocast, to be entered again in backward, which runs outside of it."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled)

"""A layer whose output is known, as a node of the autograd graph: its forward costs nothing.

The exact pass over all tokens has computed each layer's output for the involved rows too. `replay` puts those rows into
the graph as if the layer had just made them. Backward runs the layer once more with gradient, from what was kept.
That may be the rows' input and attention output, and the keys and values that they attended to, where the layer's own
graph keeps about a dozen of the row's vectors: then queries, norms, gate and up are recomputed, and attention is not,
nor is anything that only the known output depends on. Or it is the input alone, of the rows or of all tokens
(`recompute='full'`). With a HostMemory, what is kept waits there (memory/offload.py).

Shapes   B batch, G involved tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jenga_core.layers.gated_mlp import output_unused
from jenga_core.memory.offload import HostMemory

Layer = Callable[[Tensor], Tensor]
"""From the rows that enter to the rows that leave."""

Kept = Sequence[Tensor | None]


def replay(
    again: Callable[..., tuple[Tensor, Layer]],
    x_BGE: Tensor,
    y_BGE: Tensor,
    kept: Kept,
    parameters: Sequence[nn.Parameter],
    host: HostMemory | None = None,
) -> Tensor:
    """y with the gradient of the layer that made it of x: to x, and to the parameters.

    Args:
        again: is called in backward with the tensors of `kept`, and returns x and the layer. Nothing in that may be
            random.
        x_BGE: rows that enter. They are not kept, unless `kept` has them.
        y_BGE: rows that leave, known.
        kept: saved as they are; no gradient goes to them.
        parameters: of the layer, those that are trained.
        host: where what is kept waits for backward; None: on the device.
    """
    if not torch.is_grad_enabled() or not any(each.requires_grad for each in (x_BGE, *parameters)):
        return y_BGE
    y: Tensor = _Replay.apply(x_BGE, y_BGE, again, kept, host, *parameters)
    return y


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        again: Callable[..., tuple[Tensor, Layer]],
        kept: Kept,
        host: HostMemory | None,
        *parameters: nn.Parameter,
    ) -> Tensor:
        ctx.again, ctx.autocast = again, _autocast_of(x.device.type)
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
        if ctx.parcel is not None:
            kept = ctx.parcel.take(then=ctx.layer_before)
        with ctx.autocast():
            x, layer = ctx.again(*kept)
            x = x.detach().requires_grad_(ctx.needs_input_grad[0])
            wanted = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
            with torch.enable_grad(), output_unused():
                y = layer(x)
        found = iter(torch.autograd.grad(y, wanted, dy, allow_unused=True))
        dx = next(found) if x.requires_grad else None
        dw = [next(found) if parameter.requires_grad else None for parameter in parameters]
        return (dx, None, None, None, None, *dw)


def _autocast_of(device_type: str) -> Callable[[], Any]:
    """Today's autocast, to be entered again in backward, which runs outside of it."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    # Without its cache: what was cast without gradient must not serve where there is one (PyTorch before 2.10).
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False)

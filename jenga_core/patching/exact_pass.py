"""One layer for all tokens without gradient, and what remains of it to give its involved rows a gradient later.

The pass leaves each layer's input, attention output, keys and values. When the set is chosen, the rows of inputs and
attention outputs are taken, the rest of them is dropped, and the layer joins the autograd graph by `replay`: its output
is known, so nothing runs until backward. With `recompute='full'` it leaves the input alone; keys and values are made
again when the set is chosen, the rows' attention in backward.

A layer with dropout makes another output each time it runs. It does run again, for the rows, over the keys and values
of all tokens.

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jenga_core.elimination.selection import Selection
from jenga_core.errors import ConfigError
from jenga_core.layers.attention import (
    Attended,
    AttentionCall,
    attend,
    attention_of_rows,
    attention_over_new_keys,
)
from jenga_core.layers.replay import replay
from jenga_core.layers.rows import take_rows
from jenga_core.memory.offload import HostMemory, Parcel
from jenga_core.patching.attention_calls import attention_by, attention_call, without_mask
from jenga_core.patching.involvement import Involvement


@dataclass(frozen=True)
class ExactLayer:
    """What a layer's pass over all the rows that it is given leaves behind."""

    x_BxE: Tensor | Parcel
    """Its input."""
    arguments: Mapping[str, Any]
    """The layer's keyword arguments."""
    attended: Attended
    """What is kept of its attention."""

    drew_random_numbers: bool
    """So it drops something out, and would make another output if it ran again."""

    def in_host_memory(self, host: HostMemory) -> ExactLayer:
        """The same, its input there."""
        assert isinstance(self.x_BxE, Tensor)
        return replace(self, x_BxE=host.put([self.x_BxE]))

    def input(self, then: ExactLayer | None = None) -> Tensor:
        """What the layer was given; `then` is the layer whose input is wanted next."""
        if isinstance(self.x_BxE, Tensor):
            return self.x_BxE
        following = None if then is None or isinstance(then.x_BxE, Tensor) else then.x_BxE
        (x_BxE,) = self.x_BxE.take(following)
        assert x_BxE is not None
        return x_BxE


def run_exactly(
    involvement: Involvement,
    index: int,
    x_BxE: Tensor,
    arguments: Mapping[str, Any],
    among: Selection | None = None,
) -> tuple[Tensor, ExactLayer]:
    """The layer's output for all rows, without gradient, and what it leaves.

    Args:
        x_BxE: all T tokens, or the involved rows if `among` is given: these then see each other only.
        arguments: the layer's keyword arguments for these rows.
    """
    attended: list[Attended] = []

    def attend_and_remember(call: AttentionCall) -> Tensor:
        refuse_dropout(call)
        sight = involvement.sight(call.window_tokens, among)
        o_BHxD, lse_BHx = attend(call, sight)
        if involvement.recompute == "full":
            attended.append(Attended(sight))
        else:
            attended.append(Attended(sight, _alone(call.k_BKGD), _alone(call.v_BKGD), o_BHxD, lse_BHx))
        return o_BHxD

    layer = involvement.parts.layers[index]
    elimination = nullcontext() if among is None else involvement.mlp_elimination(index, among)
    before = random_state(x_BxE.device)
    with torch.no_grad(), elimination, attention_by(layer, involvement.parts.architecture, attend_and_remember):
        y_BxE = involvement.layer_forwards[index](x_BxE, **without_mask(arguments))
    drew = random_state(x_BxE.device) != before
    return y_BxE, ExactLayer(x_BxE, arguments, attended[0], drew)


def with_keys(involvement: Involvement, index: int, x_BTE: Tensor, left: ExactLayer) -> ExactLayer:
    """What the layer left, with the keys and values of all tokens x, made again if they were not kept."""
    if left.attended.k_BKTD is not None or not torch.is_grad_enabled():
        return left
    if left.drew_random_numbers:
        raise _would_differ(index)
    call = attention_call(involvement.parts.layers[index], involvement.parts.architecture, x_BTE, left.arguments)
    attended = replace(left.attended, k_BKTD=_alone(call.k_BKGD), v_BKTD=_alone(call.v_BKGD))
    return replace(left, attended=attended)


def rows_of_exact_layer(
    involvement: Involvement,
    index: int,
    x_BGE: Tensor,
    y_BTE: Tensor,
    left: ExactLayer,
    row_arguments: Mapping[str, Any],
    selection: Selection,
) -> Tensor:
    """The involved rows that leave a layer whose exact pass has been, with gradient.

    Args:
        x_BGE: those that enter it, with gradient.
        y_BTE: all tokens that left it.
        left: with its keys and values.
    """
    if not torch.is_grad_enabled():
        return take_rows(y_BTE, selection.token_index_BG)
    layer, architecture, attended = involvement.parts.layers[index], involvement.parts.architecture, left.attended
    if left.drew_random_numbers:
        with attention_by(layer, architecture, lambda call: attention_over_new_keys(call, attended, selection)):
            return involvement.layer_forwards[index](x_BGE, **without_mask(row_arguments))
    y_BGE = take_rows(y_BTE, selection.token_index_BG)
    return replayed(involvement, index, x_BGE, y_BGE, attended.at_rows(selection), row_arguments)


def refuse_dropout(call: AttentionCall) -> None:
    """Raise ConfigError for attention that drops out, which what computes attention here does not know."""
    if call.dropout:
        raise ConfigError(
            f"attention dropout is {call.dropout:g}; tokens that are computed exactly, layers that are computed again, "
            "and attention in groups need the model's config.attention_dropout at 0"
        )


def run_and_replay(
    involvement: Involvement, index: int, x_BxE: Tensor, arguments: Mapping[str, Any], among: Selection | None = None
) -> Tensor:
    """The layer's output for rows that all have gradient, which keep nothing but their input."""
    y_BxE, left = run_exactly(involvement, index, x_BxE, arguments, among)
    if left.drew_random_numbers:
        raise _would_differ(index)
    return replayed(involvement, index, x_BxE, y_BxE, left.attended, arguments, among)


def _would_differ(index: int) -> ConfigError:
    return ConfigError(
        f"recompute='full' computes layer {index} twice, but it drops out at random and would differ; set dropout to "
        "0, of the adapter and of the model's config, or use recompute='none'",
        param="jenga.recompute",
    )


def _alone(tensor: Tensor) -> Tensor:
    """Not a part of something larger, which would be kept with it (Phi-3's v, of its q, k and v)."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def replayed(
    involvement: Involvement,
    index: int,
    x_BGE: Tensor,
    y_BGE: Tensor,
    attended: Attended,
    row_arguments: Mapping[str, Any],
    among: Selection | None = None,
) -> Tensor:
    """The rows y that the layer has made of x, with gradient by replay."""
    layer, architecture = involvement.parts.layers[index], involvement.parts.architecture
    forward, arguments = involvement.layer_forwards[index], without_mask(row_arguments)

    def again(x_BGE: Tensor, attended: Attended) -> Tensor:
        elimination = nullcontext() if among is None else involvement.mlp_elimination(index, among)
        with elimination, attention_by(layer, architecture, lambda call: attention_of_rows(call, attended)):
            return forward(x_BGE, **arguments)

    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return replay(again, x_BGE, y_BGE, attended, trained, involvement.host)


def random_state(device: torch.device) -> object:
    """Something that is another after a random number was drawn on the device. A step that is being recorded draws
    none (finetuning/captured_steps.py)."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0].get_offset()
    return torch.get_rng_state().numpy().tobytes()

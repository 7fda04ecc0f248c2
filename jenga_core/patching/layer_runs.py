"""The ways in which one layer of the model can be run.

    with gradient    rows that all have gradient, as the layer does it, or in groups; with `recompute='full'` by replay
    exactly          all tokens without gradient; what remains is enough to give the involved rows one later
    by replay        rows whose output is known from an earlier run join the autograd graph; nothing runs until backward

An exact run leaves the layer's input, attention output, keys and values. When the set is chosen, the rows of inputs and
attention outputs are taken and the rest of them is dropped. With `recompute='full'` it leaves the input alone. When the
set is chosen, that becomes the input of the rows, and the keys and values of all tokens, made again; or it stays, where
it is smaller than these, and they are made again in backward. So is the rows' attention.

A layer with dropout makes another output each time it runs. It does run again, for the rows, over the keys and values
of all tokens.

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jenga_core.elimination.selection import Selection
from jenga_core.errors import ConfigError
from jenga_core.layers.attention import (
    Attended,
    AttentionCall,
    attend,
    attention_in_groups,
    attention_of_rows,
    attention_over_new_keys,
)
from jenga_core.layers.replay import Layer, replay
from jenga_core.layers.rows import take_rows
from jenga_core.memory.offload import HostMemory, Parcel
from jenga_core.patching.attention_calls import attention_by, attention_call, without_mask
from jenga_core.patching.involvement import Involvement

LayerForward = Callable[..., Tensor]


@dataclass(frozen=True)
class ExactLayer:
    """What an exact run over all the rows that it is given leaves behind."""

    x_BxE: Tensor | Parcel
    """Its input."""
    arguments: Mapping[str, Any]
    """The layer's keyword arguments."""
    attended: Attended
    """What is kept of its attention."""
    keys_bytes: int
    """Of its keys and values."""

    drew_random_numbers: bool
    """So it drops something out, and would make another output if it ran again."""

    def in_host_memory(self, host: HostMemory) -> ExactLayer:
        """The same, its input there."""
        assert isinstance(self.x_BxE, Tensor)
        return replace(self, x_BxE=host.put([self.x_BxE]))

    def input(self, then: ExactLayer | None = None) -> Tensor:
        """What the layer was given; `then` is the layer whose input is wanted next."""
        following = then.x_BxE if then is not None and isinstance(then.x_BxE, Parcel) else None
        if isinstance(self.x_BxE, Parcel):
            (x_BxE,) = self.x_BxE.take(following)
            assert x_BxE is not None
            return x_BxE
        if following is not None:
            following.start_return()
        return self.x_BxE


class LayerRuns:
    """Runs the layers of one model for one forward call."""

    def __init__(
        self,
        involvement: Involvement,
        forwards: tuple[LayerForward, ...],
        *,
        recompute: Literal["none", "mlp", "full"] = "none",
        host: HostMemory | None = None,
        attention_group_tokens: int | None = None,
        attention_sink_tokens: int = 0,
    ) -> None:
        """
        Args:
            forwards: the layers' own.
            host: where what `full` keeps waits for backward; None: on the device.
            attention_group_tokens, attention_sink_tokens: see JengaConfig.
        """
        self.involvement = involvement
        self.parts = involvement.parts
        self.forwards = forwards
        self.recompute = recompute
        self.host = host
        self.attention_group_tokens = attention_group_tokens
        self.attention_sink_tokens = attention_sink_tokens

    def with_gradient(
        self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any], among: Selection | None = None
    ) -> Tensor:
        """The layer's output for rows that all have gradient.

        Args:
            x_BxE: all T tokens, or the involved rows if `among` is given: these then see each other only.
            arguments: the layer's keyword arguments for these rows.
        """
        if self.recompute == "full" and torch.is_grad_enabled():
            y_BxE, left = self.exactly(index, x_BxE, arguments, among)
            if left.drew_random_numbers:
                raise _would_differ(index)
            return self._replayed(index, x_BxE, y_BxE, left.attended, arguments, among)
        with self._mlp_elimination(index, among):
            if self.attention_group_tokens is None:
                return self.forwards[index](x_BxE, **arguments)
            return self._in_groups(index, x_BxE, arguments, among, self.attention_group_tokens)

    def exactly(
        self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any], among: Selection | None = None
    ) -> tuple[Tensor, ExactLayer]:
        """The layer's output for all rows, without gradient, and what it leaves. Arguments as above."""
        attended: list[Attended] = []
        keys_bytes = 0

        def attend_and_remember(call: AttentionCall) -> Tensor:
            nonlocal keys_bytes
            refuse_dropout(call)
            keys_bytes = call.k_BKGD.nbytes + call.v_BKGD.nbytes
            sight = self.involvement.sight(call.window_tokens, among)
            o_BHxD, lse_BHx = attend(call, sight)
            if self.recompute == "full":
                attended.append(Attended(sight))
            else:
                attended.append(Attended(sight, _alone(call.k_BKGD), _alone(call.v_BKGD), o_BHxD, lse_BHx))
            return o_BHxD

        before = random_state(x_BxE.device)
        with torch.no_grad(), self._mlp_elimination(index, among), self._attention_by(index, attend_and_remember):
            y_BxE = self.forwards[index](x_BxE, **without_mask(arguments))
        drew = random_state(x_BxE.device) != before
        return y_BxE, ExactLayer(x_BxE, arguments, attended[0], keys_bytes, drew)

    def for_rows(self, index: int, x_BTE: Tensor, left: ExactLayer, selection: Selection) -> ExactLayer:
        """What the layer left, with what its rows need of all tokens in backward: keys and values, made again if they
        were not kept; or x, which they are made of, where that is smaller than these and the rows of x."""
        if left.attended.k_BKTD is not None or not torch.is_grad_enabled():
            return left
        if left.drew_random_numbers:
            raise _would_differ(index)
        rows_bytes = x_BTE.nbytes * selection.token_index_BG.shape[1] // x_BTE.shape[1]
        if x_BTE.nbytes <= left.keys_bytes + rows_bytes:
            return replace(left, x_BxE=x_BTE)
        return replace(left, attended=self._with_keys(index, x_BTE, left.arguments, left.attended))

    def rows_of(
        self,
        index: int,
        x_BGE: Tensor,
        y_BTE: Tensor,
        left: ExactLayer,
        row_arguments: Mapping[str, Any],
        selection: Selection,
    ) -> Tensor:
        """The involved rows that leave a layer that has run exactly, with gradient.

        Args:
            x_BGE: those that enter it, with gradient.
            y_BTE: all tokens that left it.
            left: as `for_rows` returned it.
        """
        if not torch.is_grad_enabled():
            return take_rows(y_BTE, selection.token_index_BG)
        if left.drew_random_numbers:
            with self._attention_by(index, lambda call: attention_over_new_keys(call, left.attended, selection)):
                return self.forwards[index](x_BGE, **without_mask(row_arguments))
        y_BGE = take_rows(y_BTE, selection.token_index_BG)
        attended = left.attended.at_rows(selection)
        if attended.k_BKTD is not None:
            return self._replayed(index, x_BGE, y_BGE, attended, row_arguments)
        arguments, of_rows = without_mask(left.arguments), without_mask(row_arguments)

        def again(x_BTE: Tensor) -> tuple[Tensor, Layer]:
            layer = self._layer(index, self._with_keys(index, x_BTE, arguments, attended), of_rows)
            return take_rows(x_BTE, selection.token_index_BG), layer

        return replay(again, x_BGE, y_BGE, [left.input()], self._trained(index), self.host)

    def _replayed(
        self,
        index: int,
        x_BGE: Tensor,
        y_BGE: Tensor,
        attended: Attended,
        row_arguments: Mapping[str, Any],
        among: Selection | None = None,
    ) -> Tensor:
        """The rows y that the layer has made of x, with gradient by replay from x and what is kept of its attention."""
        sight, arguments = attended.sight, without_mask(row_arguments)

        def again(x_BGE: Tensor, *kept: Tensor | None) -> tuple[Tensor, Layer]:
            return x_BGE, self._layer(index, Attended(sight, *kept), arguments, among)

        return replay(again, x_BGE, y_BGE, [x_BGE, *attended.tensors], self._trained(index), self.host)

    def _layer(
        self, index: int, attended: Attended, row_arguments: Mapping[str, Any], among: Selection | None = None
    ) -> Layer:
        """The layer for rows of whose attention something is known; `row_arguments` without a mask."""

        def layer(x_BGE: Tensor) -> Tensor:
            attention = self._attention_by(index, lambda call: attention_of_rows(call, attended))
            with self._mlp_elimination(index, among), attention:
                return self.forwards[index](x_BGE, **row_arguments)

        return layer

    def _with_keys(self, index: int, x_BTE: Tensor, arguments: Mapping[str, Any], attended: Attended) -> Attended:
        """With the keys and values of all tokens x, made again."""
        call = attention_call(self.parts.layers[index], self.parts.architecture, x_BTE, arguments)
        return replace(attended, k_BKTD=_alone(call.k_BKGD), v_BKTD=_alone(call.v_BKGD))

    def _trained(self, index: int) -> list[nn.Parameter]:
        return [parameter for parameter in self.parts.layers[index].parameters() if parameter.requires_grad]

    def _in_groups(
        self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any], among: Selection | None, group_tokens: int
    ) -> Tensor:
        """The layer for rows that attend within shifted groups of so many of them."""

        def attend_in_groups(call: AttentionCall) -> Tensor:
            refuse_dropout(call)
            sight = self.involvement.sight(call.window_tokens, among)
            return attention_in_groups(call, sight, group_tokens, self.attention_sink_tokens)

        with self._attention_by(index, attend_in_groups):
            return self.forwards[index](x_BxE, **without_mask(arguments))

    def _attention_by(self, index: int, attend: Callable[[AttentionCall], Tensor]) -> AbstractContextManager[None]:
        return attention_by(self.parts.layers[index], self.parts.architecture, attend)

    def _mlp_elimination(self, index: int, among: Selection | None) -> AbstractContextManager[None]:
        return nullcontext() if among is None else self.involvement.mlp_elimination(index, among)


def refuse_dropout(call: AttentionCall) -> None:
    """Raise ConfigError for attention that drops out, which what computes attention here does not know."""
    if call.dropout:
        raise ConfigError(
            f"attention dropout is {call.dropout:g}; tokens that are computed exactly, layers that are computed again, "
            "and attention in groups need the model's config.attention_dropout at 0"
        )


def _would_differ(index: int) -> ConfigError:
    return ConfigError(
        f"recompute='full' computes layer {index} twice, but it drops out at random and would differ; set dropout to "
        "0, of the adapter and of the model's config, or use recompute='none'",
        param="jenga.recompute",
    )


def _alone(tensor: Tensor) -> Tensor:
    """Not a part of something larger, which would be kept with it (Phi-3's v, of its q, k and v)."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def random_state(device: torch.device) -> object:
    """Something that is another after a random number was drawn on the device. A step that is being recorded draws
    none (finetuning/captured_steps.py)."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0].get_offset()
    return torch.get_rng_state().numpy().tobytes()

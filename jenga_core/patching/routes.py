"""The way of the rows through the layers.

From the entry layer e on, a layer may be handed the rows of the involved tokens only. To it they are simply a shorter
sequence at its original positions, so attention, MLP, adapters and all they save for backward shrink alike. What
becomes of the other tokens is the policy's choice, below and above e:

    below e         from e on       the route
    forward_only    eliminated      (default: deferred selection) all tokens run 0..e-1 without gradient; the set is
                                    chosen; its rows get their gradient through 0..e-1 by replay; they run e..L-1 alone
    involved        eliminated      all tokens run 0..e-1 with gradient; the rows run e..L-1 alone
    forward_only    forward_only    all tokens run 0..L-1 without gradient; the rows get theirs by replay
    involved        forward_only    all tokens run 0..e-1 with gradient and e..L-1 without; the rows replay e..L-1
    involved        either, chosen anew in every layer (the paper's rule): take rows, compute, put them back

A layer that computes with gradient keeps what `recompute` says: everything; everything but gate and up; or, by replay
of its own rows, no more than its input.

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from jenga_core.elimination.selection import Selection
from jenga_core.errors import ConfigError
from jenga_core.layers.attention import mask_among_involved
from jenga_core.layers.residual_rows import ResidualRows
from jenga_core.layers.rows import put_rows, take_rows
from jenga_core.memory.offload import HostMemory
from jenga_core.patching.layer_runs import ExactLayer, LayerRuns

_BY_TOKEN = ("position_ids", "cache_position")


class Route(Protocol):
    """One forward call's way; layers call it in their order."""

    def through_layer(self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """What layer `index` makes of the residual stream; x is all T tokens or the G involved ones.

        `arguments` are the layer's keyword arguments as the dense model passes them, for all T tokens.
        """
        ...


def route_of(layers: LayerRuns) -> Route:
    """The route that the selection's scope asks for."""
    return PerLayer(layers) if layers.involvement.config.scope == "per_layer" else Carried(layers)


class Dense:
    """Every token stays involved in every layer (the `lora` preset)."""

    def __init__(self, layers: LayerRuns) -> None:
        self.layers = layers

    def through_layer(self, index: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """See Route."""
        return self.layers.with_gradient(index, x_BTE, arguments)


class Carried:
    """One set, chosen at the entry layer.

    Layers `exact_from` to `exact_to` - 1 run for all tokens without gradient (they are forward-only), and their rows
    join the graph afterwards. Layers from `exact_to` on run for the rows alone.
    """

    def __init__(self, layers: LayerRuns) -> None:
        self.layers = layers
        self.involvement = involvement = layers.involvement
        config = involvement.config
        self.exact_from = 0 if config.below_entry == "forward_only" else involvement.entry_layer
        self.exact_to = involvement.entry_layer if config.unselected == "eliminated" else involvement.num_layers
        self._left: list[ExactLayer] = []
        self._passed_on: _PassedOn | None = None
        """What the last exact layer handed to the next."""
        self._inputs_in_host_memory = None if layers.host is None else HostMemory()
        self._entry_BTE: Tensor | None = None
        self._row_arguments: _RowArguments | None = None

    def through_layer(self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """See Route."""
        involvement = self.involvement
        is_last = index == involvement.num_layers - 1
        if index == involvement.entry_layer:
            self._entry_BTE = x_BxE if involvement.config.loss_on == "all" else None
            involvement.selection_at(index, x_BxE, arguments)
        if index < self.exact_from:
            return self.layers.with_gradient(index, x_BxE, arguments)
        if self._passed_on is not None and not self._passed_on.is_still(x_BxE):
            raise ConfigError(
                f"what layer {index - 1} computed was changed before it came to layer {index}, by a hook perhaps; the "
                "gradient would not know of it: take the hook away, or use below_entry='involved' and "
                "unselected='eliminated'"
            )
        self._passed_on = None
        if index < self.exact_to:
            y_BTE, left = self.layers.exactly(index, x_BxE, arguments)
            self._passed_on = None if is_last else _PassedOn(y_BTE)
            if self._inputs_in_host_memory is not None and self._left:  # the first one's carries the gradient on
                left = left.in_host_memory(self._inputs_in_host_memory)
            self._left.append(left)
            return self._out(y_BTE, self._rows_that_left(y_BTE)) if is_last else y_BTE
        if index == self.exact_to:
            x_BxE = self._rows_that_left(x_BxE)
        rows_BGE = self.layers.with_gradient(index, x_BxE, self._of_rows(arguments), self._selection)
        return self._out(self._entry_BTE, rows_BGE) if is_last else rows_BGE

    @property
    def _selection(self) -> Selection:
        return self.involvement.selections[self.involvement.entry_layer]

    def _of_rows(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._row_arguments is None:
            self._row_arguments = _RowArguments(self._selection)
        return self._row_arguments(arguments)

    def _out(self, others_BTE: Tensor | None, rows_BGE: Tensor) -> Tensor:
        """What leaves the last layer: the rows that carry loss."""
        if self.involvement.config.loss_on == "involved":
            return rows_BGE
        assert others_BTE is not None
        return put_rows(others_BTE, rows_BGE, self._selection)

    def _rows_that_left(self, end_BTE: Tensor) -> Tensor:
        """The involved rows that left the exact layers, with gradient; each layer's other rows are let go at once."""
        if self._inputs_in_host_memory is not None:
            self._inputs_in_host_memory.let_go()
        next_BTE = self._next_input(end_BTE)
        rows_BGE = take_rows(next_BTE, self._selection.token_index_BG)
        for index in range(self.exact_from, self.exact_to):
            left = self.layers.for_rows(index, next_BTE, self._left.pop(0), self._selection)
            del next_BTE
            next_BTE = self._next_input(end_BTE)
            row_arguments = self._of_rows(left.arguments)
            rows_BGE = self.layers.rows_of(index, rows_BGE, next_BTE, left, row_arguments, self._selection)
        return rows_BGE

    def _next_input(self, end_BTE: Tensor) -> Tensor:
        """Of the first exact layer that is left, while that of the second returns; or what left the last."""
        if not self._left:
            return end_BTE
        return self._left[0].input(then=self._left[1] if len(self._left) > 1 else None)


class PerLayer:
    """A set of its own in every layer from the entry layer on; the others pass by, and come back when they are
    wanted."""

    def __init__(self, layers: LayerRuns) -> None:
        self.layers = layers
        self.involvement = layers.involvement

    def through_layer(self, index: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """See Route. x is always all T tokens."""
        involvement = self.involvement
        if index < involvement.entry_layer:
            return self.layers.with_gradient(index, x_BTE, arguments)
        selection = involvement.selection_at(index, x_BTE, arguments)
        row_arguments = _RowArguments(selection)(arguments)
        if involvement.config.unselected == "eliminated":
            # What enters layer 0 may be the caller's own, and checkpointing reads it again.
            is_ours = index > 0 and not involvement.parts.decoder.gradient_checkpointing
            rows = ResidualRows(x_BTE, selection, in_place=is_ours)
            return rows.put_back(self.layers.with_gradient(index, rows.take(), row_arguments, selection))
        rows_BGE = take_rows(x_BTE, selection.token_index_BG)
        y_BTE, left = self.layers.exactly(index, x_BTE, arguments)
        left = self.layers.for_rows(index, x_BTE, left, selection)
        rows_BGE = self.layers.rows_of(index, rows_BGE, y_BTE, left, row_arguments, selection)
        return put_rows(x_BTE + (y_BTE - x_BTE).detach(), rows_BGE, selection)


class _PassedOn:
    """A tensor as it was."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = self._version_of(tensor)

    def is_still(self, tensor: Tensor) -> bool:
        """Whether that is it, unchanged."""
        return tensor is self._tensor and self._version_of(tensor) == self._version

    @staticmethod
    def _version_of(tensor: Tensor) -> int:
        return 0 if tensor.is_inference() else tensor._version


class _RowArguments:
    """Layers' keyword arguments for the rows of one selection. Layers are given the same tensors, so they share
    rows."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._of: dict[int, tuple[Any, Any]] = {}

    def __call__(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Positions, rotary angles and mask of the rows; the rest as it is.

        Raises ConfigError for a tensor of any other name: unchanged, it would still describe all tokens.
        """
        changed = dict(arguments)
        for name, value in arguments.items():
            if name == "attention_mask":
                changed[name] = self._once(value, lambda mask: mask_among_involved(mask, self._selection))
            elif name == "position_embeddings" and value is not None:
                changed[name] = tuple(self._once(angles, self._take) for angles in value)
            elif name in _BY_TOKEN and isinstance(value, Tensor):
                changed[name] = self._once(value, lambda of_token: self._take(of_token.reshape(-1, of_token.shape[-1])))
            elif isinstance(value, Tensor):
                raise ConfigError(
                    f"layers are given {name!r}, whose rows Jenga does not know; leave it out", param=name
                )
        return changed

    def _take(self, of_token: Tensor) -> Tensor:
        return take_rows(of_token, self._selection.token_index_BG)

    def _once(self, of_all: Any, make: Callable[[Any], Any]) -> Any:
        if id(of_all) not in self._of:
            self._of[id(of_all)] = of_all, make(of_all)  # kept together, so that the id stays its own
        return self._of[id(of_all)][1]

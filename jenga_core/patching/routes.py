"""The way of the rows through the layers.

From the entry layer e on, a layer may be handed the rows of the involved tokens only. To it they are simply a shorter
sequence at its original positions, so attention, MLP, adapters and all they save for backward shrink alike. What
becomes of the other tokens is the policy's choice, below and above e:

    below e         from e on       the route
    forward_only    eliminated      (default: deferred selection) all tokens run 0..e-1 without gradient and leave K
    and V;
                                    the set is chosen; its rows run 0..e-1 again, against all K and V; then e..L-1 alone
    involved        eliminated      all tokens run 0..e-1 with gradient; the rows run e..L-1 alone
    forward_only    forward_only    all tokens run 0..L-1 without gradient; the rows run 0..L-1 again against all K and
    V involved        forward_only    all tokens run 0..e-1 with gradient and e..L-1 without; the rows run e..L-1 again
    involved        either, chosen anew in every layer (the paper's rule): take rows, compute, put them back

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from jenga_core.elimination.selection import Selection
from jenga_core.errors import ConfigError
from jenga_core.layers.attention import KeysAndValues, mask_among_involved, mask_over_all_keys
from jenga_core.layers.rows import put_rows, take_rows
from jenga_core.patching.involvement import Involvement

_BY_TOKEN = ("position_ids", "cache_position")


class Route(Protocol):
    """One forward call's way; layers call it in their order."""

    def through_layer(self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """What layer `index` makes of the residual stream; x is all T tokens or the G involved ones.

        `arguments` are the layer's keyword arguments as the dense model passes them, for all T tokens.
        """
        ...


def route_of(involvement: Involvement) -> Route:
    """The route that the selection's scope asks for."""
    return PerLayer(involvement) if involvement.config.scope == "per_layer" else Carried(involvement)


class Carried:
    """One set, chosen at the entry layer.

    Layers `exact_from` to `exact_to` - 1 run twice: once for all tokens without gradient (they are forward-only), and
    once for the rows, against the keys and values of all. Layers from `exact_to` on run for the rows alone.
    """

    def __init__(self, involvement: Involvement) -> None:
        config = involvement.config
        self.involvement = involvement
        self.exact_from = 0 if config.below_entry == "forward_only" else involvement.entry_layer
        self.exact_to = involvement.entry_layer if config.unselected == "eliminated" else involvement.num_layers
        self._keys_and_values = KeysAndValues()
        self._exact_arguments: dict[int, Mapping[str, Any]] = {}
        self._start_BTE: Tensor | None = None
        self._entry_BTE: Tensor | None = None

    def through_layer(self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """See Route."""
        involvement, forward = self.involvement, self.involvement.layer_forwards[index]
        is_last = index == involvement.num_layers - 1
        if index == self.exact_from:
            self._start_BTE = x_BxE
        if index == involvement.entry_layer:
            self._entry_BTE = x_BxE
            involvement.selection_at(index, x_BxE, arguments)
        if index < self.exact_from:
            return forward(x_BxE, **arguments)
        if index < self.exact_to:
            self._exact_arguments[index] = arguments
            with torch.no_grad():
                y_BTE = forward(x_BxE, **{**arguments, "past_key_values": self._keys_and_values})
            return self._out(y_BTE, self._rows_again()) if is_last else y_BTE
        if index == self.exact_to:
            x_BxE = self._rows_again()
        with involvement.mlp_elimination(index, self._selection):
            rows_BGE = forward(x_BxE, **_for_rows(arguments, self._selection))
        assert self._entry_BTE is not None
        return self._out(self._entry_BTE, rows_BGE) if is_last else rows_BGE

    @property
    def _selection(self) -> Selection:
        return self.involvement.selections[self.involvement.entry_layer]

    def _out(self, others_BTE: Tensor, rows_BGE: Tensor) -> Tensor:
        """What leaves the last layer: the rows that carry loss."""
        return put_rows(others_BTE, rows_BGE, self._selection) if self.involvement.config.loss_on == "all" else rows_BGE

    def _rows_again(self) -> Tensor:
        """The involved rows, taken where the exact pass began, through its layers with gradient."""
        assert self._start_BTE is not None
        self._keys_and_values.involved = self._selection
        rows_BGE = take_rows(self._start_BTE, self._selection.token_index_BG)
        for index, arguments in self._exact_arguments.items():
            rows_BGE = _against_all_keys(
                self.involvement, index, rows_BGE, arguments, self._selection, self._keys_and_values
            )
        return rows_BGE


class PerLayer:
    """A set of its own in every layer from the entry layer on; the others pass by, and come back when they are
    wanted."""

    def __init__(self, involvement: Involvement) -> None:
        self.involvement = involvement

    def through_layer(self, index: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """See Route. x is always all T tokens."""
        involvement, forward = self.involvement, self.involvement.layer_forwards[index]
        if index < involvement.entry_layer:
            return forward(x_BTE, **arguments)
        selection = involvement.selection_at(index, x_BTE, arguments)
        rows_BGE = take_rows(x_BTE, selection.token_index_BG)
        if involvement.config.unselected == "eliminated":
            with involvement.mlp_elimination(index, selection):
                rows_BGE = forward(rows_BGE, **_for_rows(arguments, selection))
            return put_rows(x_BTE, rows_BGE, selection)
        keys_and_values = KeysAndValues()
        with torch.no_grad():
            exact_BTE = forward(x_BTE, **{**arguments, "past_key_values": keys_and_values})
        keys_and_values.involved = selection
        rows_BGE = _against_all_keys(involvement, index, rows_BGE, arguments, selection, keys_and_values)
        return put_rows(x_BTE + (exact_BTE - x_BTE).detach(), rows_BGE, selection)


def _against_all_keys(
    involvement: Involvement,
    index: int,
    rows_BGE: Tensor,
    arguments: Mapping[str, Any],
    selection: Selection,
    keys_and_values: KeysAndValues,
) -> Tensor:
    """Layer `index` for the involved rows, which see the keys and values of all tokens."""
    mask = mask_over_all_keys(arguments.get("attention_mask"), selection, involvement.targets_BT.shape[1])
    changed = {**_for_rows(arguments, selection), "attention_mask": mask, "past_key_values": keys_and_values}
    return involvement.layer_forwards[index](rows_BGE, **changed)


def _for_rows(arguments: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """A layer's keyword arguments for the involved rows: their positions, rotary angles and mask.

    Raises ConfigError for a tensor of any other name: unchanged, it would still describe all tokens.
    """
    for name, value in arguments.items():
        if isinstance(value, Tensor) and name not in (*_BY_TOKEN, "attention_mask"):
            raise ConfigError(f"layers are given {name!r}, whose rows Jenga does not know; leave it out", param=name)
    index_BG = selection.token_index_BG
    changed = dict(arguments)
    changed["attention_mask"] = mask_among_involved(arguments.get("attention_mask"), selection)
    for name in _BY_TOKEN:
        if isinstance(arguments.get(name), Tensor):
            changed[name] = take_rows(arguments[name].reshape(-1, arguments[name].shape[-1]), index_BG)
    if arguments.get("position_embeddings") is not None:
        changed["position_embeddings"] = tuple(
            take_rows(angles, index_BG) for angles in arguments["position_embeddings"]
        )
    return changed

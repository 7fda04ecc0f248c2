"""One training forward: which tokens are involved, and the way of their rows through the layers.

The entry layer e is where tokens are chosen. From there on a layer is handed the rows of the involved tokens only; to
it they are simply a shorter sequence at its original positions, so attention, MLP, adapters and everything they save
for backward shrink alike, and an eliminated token's residual passes by unchanged.

    layer     0 ............ e-1 | e                    ....................... L-1 | loss
    carried   all tokens         | choose, take rows    rows                        | rows, or all rows put back
    deferred  all, no gradient   | choose, then 0..e-1  rows                        | rows
                                   again for the rows
                                   against all K and V
    per layer all tokens         | in every layer: choose, take rows, compute, put them back  | all

Shapes   B batch, T tokens, G involved tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from jenga_core.config import SelectionConfig
from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.informativeness import informativeness
from jenga_core.elimination.selection import Selection, select
from jenga_core.layers.attention import KeysAndValues, mask_among_involved, mask_over_all_keys
from jenga_core.layers.rows import put_rows, take_rows
from jenga_core.loss.segmented_cross_entropy import IGNORE
from jenga_core.patching.architectures import Parts
from jenga_core.patching.queries_and_keys import queries_and_keys

LayerForward = Callable[..., Tensor]

_BY_TOKEN = ("position_ids", "cache_position")


class Involvement:
    """State of one forward call, made anew for each. Layers call `through_layer` in their order."""

    def __init__(
        self,
        config: SelectionConfig,
        parts: Parts,
        layer_forwards: tuple[LayerForward, ...],
        *,
        entry_layer: int,
        targets_BT: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> None:
        self.config = config
        self.parts = parts
        self.layer_forwards = layer_forwards
        self.num_layers = len(parts.layers)
        self.entry_layer = entry_layer
        self.targets_BT = targets_BT
        self.blocks = split_into_blocks(
            *targets_BT.shape,
            block_tokens=config.block_tokens,
            attention_mask_BT=attention_mask,
            position_ids=position_ids,
            device=targets_BT.device,
        )
        self.selections: dict[int, Selection] = {}
        """By the layer that chose; a layer is recomputed (gradient checkpointing) with the choice it made first."""
        self._keys_and_values = KeysAndValues()
        self._lower_layer_arguments: list[dict[str, Any]] = []
        self._first_input_BTE: Tensor | None = None
        self._entry_input_BTE: Tensor | None = None

    def loss_targets(self) -> Tensor:
        """What each row that comes out of the last layer should predict: B x T or B x G, -100 where no loss is
        taken."""
        if self.config.loss_on == "all":
            return self.targets_BT
        selection = self.selections[max(self.selections)]
        if self.config.scope == "carried":
            return take_rows(self.targets_BT, selection.token_index_BG).masked_fill(~selection.is_kept_BG, IGNORE)
        nothing_BT = torch.full_like(self.targets_BT, IGNORE)
        return put_rows(nothing_BT, take_rows(self.targets_BT, selection.token_index_BG), selection)

    def through_layer(self, index: int, x_BxE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """What layer `index` makes of the residual stream; x is all T tokens or the G involved ones.

        `arguments` are the layer's keyword arguments as the dense model passes them, for all T tokens.
        """
        forward = self.layer_forwards[index]
        if index < self.entry_layer:
            return self._below_entry(index, x_BxE, arguments)
        if self.config.scope == "per_layer":
            selection = self._selection_at(index, x_BxE, arguments)
            rows_BGE = forward(take_rows(x_BxE, selection.token_index_BG), **_for_rows(arguments, selection))
            return put_rows(x_BxE, rows_BGE, selection)

        selection = self._selection_at(self.entry_layer, x_BxE, arguments)
        if index == self.entry_layer:
            self._entry_input_BTE = x_BxE
            x_BxE = self._rows_at_entry(x_BxE, selection)
        rows_BGE = forward(x_BxE, **_for_rows(arguments, selection))
        if index == self.num_layers - 1 and self.config.loss_on == "all":
            assert self._entry_input_BTE is not None
            return put_rows(self._entry_input_BTE, rows_BGE, selection)
        return rows_BGE

    def _below_entry(self, index: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        if self.config.below_entry == "involved":
            return self.layer_forwards[index](x_BTE, **arguments)
        if index == 0:
            self._first_input_BTE = x_BTE
        self._lower_layer_arguments.append(dict(arguments))
        with torch.no_grad():
            return self.layer_forwards[index](x_BTE, **{**arguments, "past_key_values": self._keys_and_values})

    def _rows_at_entry(self, x_BTE: Tensor, selection: Selection) -> Tensor:
        """The involved rows as they enter layer e, with the gradient path that the policy below e asks for."""
        if self._first_input_BTE is None:
            return take_rows(x_BTE, selection.token_index_BG)
        self._keys_and_values.involved = selection
        rows_BGE = take_rows(self._first_input_BTE, selection.token_index_BG)
        for forward, arguments in zip(self.layer_forwards, self._lower_layer_arguments, strict=False):
            row_arguments = _for_rows(arguments, selection)
            mask = mask_over_all_keys(arguments.get("attention_mask"), selection, x_BTE.shape[1])
            rows_BGE = forward(
                rows_BGE, **{**row_arguments, "attention_mask": mask, "past_key_values": self._keys_and_values}
            )
        return rows_BGE

    def _selection_at(self, index: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Selection:
        if index not in self.selections:
            self.selections[index] = select(
                self._scores_BN(index, x_BTE, arguments),
                self.blocks,
                self.targets_BT != IGNORE,
                keep_fraction=self.config.keep_fraction,
            )
        return self.selections[index]

    def _scores_BN(self, index: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        shape = self.blocks.document_of_block_BN.shape
        if self.config.score == "random":
            return torch.rand(shape).to(x_BTE.device)  # CPU generator: a resumed run draws the same sets
        if self.config.score == "recent":
            return torch.arange(shape[1], device=x_BTE.device, dtype=torch.float32).expand(shape)
        asked = queries_and_keys(self.parts.layers[index], self.parts.architecture, x_BTE, arguments)
        return informativeness(asked.q_BHTD, asked.k_BKTD, self.blocks, scale=asked.scale, column=self.config.column)


def _for_rows(arguments: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """A layer's keyword arguments for the involved rows: their positions, rotary angles and mask."""
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

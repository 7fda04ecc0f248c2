"""One training forward: which tokens are involved, and what every layer needs to know about them.

An `Involvement` is made anew for each forward call. It cuts the batch into blocks, says which are learnt from, scores
and selects them when a layer asks, and says which labels the loss is taken on. The way of the rows through the layers
is in routes.py.

Shapes   B batch, T tokens, G involved tokens, E hidden size, N blocks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from jenga_core.config import SelectionConfig
from jenga_core.elimination.blocks import split_into_blocks
from jenga_core.elimination.informativeness import informativeness
from jenga_core.elimination.selection import Selection, select
from jenga_core.elimination.targets import target_blocks
from jenga_core.elimination.thresholds import Thresholds
from jenga_core.errors import ConfigError
from jenga_core.layers.mlp import mlp_of_chosen_rows
from jenga_core.layers.rows import take_rows
from jenga_core.layers.sight import Sight
from jenga_core.loss.segmented_cross_entropy import IGNORE, count_labels
from jenga_core.patching.attention_calls import attention_call
from jenga_core.patching.parts import Parts
from jenga_core.prediction.predictor import Predictors

_MANY_LABELS = 0.9


class Involvement:
    """Blocks, scores and selections of one forward call."""

    def __init__(
        self,
        config: SelectionConfig,
        parts: Parts,
        *,
        entry_layer: int,
        thresholds: Thresholds | None,
        predictors: Predictors | None,
        targets_BT: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        epoch: int = 0,
        is_full: bool = False,
    ) -> None:
        """
        Args:
            targets_BT: int64, what each token should predict.
            epoch: how often the data was seen before.
            is_full: the caller knows that every token has a valid label but the last of each sequence; it is not
                counted then, which would wait for the GPU.
        """
        self.config = config
        self.parts = parts
        self.num_layers = len(parts.layers)
        self.entry_layer = entry_layer
        self.thresholds = thresholds
        self.predictors = predictors
        self.targets_BT = targets_BT
        self.blocks = split_into_blocks(
            *targets_BT.shape,
            block_tokens=config.block_tokens,
            attention_mask_BT=attention_mask,
            position_ids=position_ids,
            device=targets_BT.device,
        )
        is_packed = position_ids is not None and bool((self.blocks.document_of_block_BN > 0).any())
        if is_packed and not parts.architecture.separates_documents:
            raise ConfigError(
                f"position_ids start anew within a sequence, but {type(parts.causal_lm).__name__} would let the packed "
                "documents attend to each other; give each a sequence of its own",
                param="position_ids",
            )
        if is_packed and attention_mask is not None:
            raise ConfigError(
                "position_ids start anew within a sequence and attention_mask is given, with which transformers lets "
                "packed documents attend to each other; leave attention_mask out",
                param="attention_mask",
            )
        self._given_targets_BT = targets_BT
        if self.blocks.has_padding:  # which predicts nothing, whatever label comes after it
            self.targets_BT = targets_BT = targets_BT.masked_fill(self.blocks.block_of_token_BT < 0, IGNORE)
        has_label_BT = targets_BT != IGNORE
        self.has_many_labels = is_full or (
            count_labels(targets_BT, parts.head.weight.shape[0]) >= _MANY_LABELS * targets_BT.numel()
        )
        """Finding the rows without one would cost more than computing them."""
        self.target_BN: Tensor | None = None
        """Blocks that are learnt from whatever they score; None: scores alone decide."""
        if config.target_fraction > 0:
            self.target_BN = target_blocks(
                targets_BT,
                has_label_BT,
                self.blocks,
                keep_fraction=config.keep_fraction,
                target_fraction=config.target_fraction,
                epoch=epoch,
            )
        self.asking_BN: Tensor | None = None
        """Query blocks whose asking counts; None: all."""
        if config.asked_by == "targets":
            self.asking_BN = self.blocks.any_token(has_label_BT) if self.target_BN is None else self.target_BN
        self.selections: dict[int, Selection] = {}
        """By the layer that chose."""
        self.mlp_selections: dict[int, Selection] = {}
        """By layer: among the rows that it computes, those whose MLP is computed."""
        self._sights: dict[tuple[int | None, int], Sight] = {}
        self.scores: dict[int, Tensor] = {}
        """Block scores that a selection was made from, float B x N."""

    def sight(self, window_tokens: int | None, among: Selection | None = None) -> Sight:
        """Which keys every token sees in a layer with this window, or the involved rows `among` themselves."""
        key = window_tokens, id(among)
        if key not in self._sights:
            everyone = Sight.of_all_tokens(self.blocks, window_tokens)
            self._sights[key] = everyone if among is None else everyone.among_themselves(among)
        return self._sights[key]

    def selection_at(self, layer: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Selection:
        """The selection of `layer`, from the residual stream x that enters it.

        A layer that is recomputed (gradient checkpointing) gets the choice it made first.
        """
        if layer not in self.selections:
            by_threshold = self.config.by == "threshold"
            self.scores[layer] = self.scores_at(layer, x_BTE, arguments)
            self.selections[layer] = select(
                self.scores[layer],
                self.blocks,
                self.targets_BT != IGNORE,
                keep_fraction=None if by_threshold else self.config.keep_fraction,
                threshold=self._threshold_of(layer) if by_threshold else None,
                target_BN=self.target_BN,
            )
        return self.selections[layer]

    def scores_at(self, layer: int, x_BTE: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Block scores at `layer`, float B x N, without gradient."""
        shape = self.blocks.document_of_block_BN.shape
        if self.config.score == "random":
            return torch.rand(shape).to(x_BTE.device)  # CPU generator: a resumed run draws the same sets
        if self.config.score == "recent":
            return torch.arange(shape[1], device=x_BTE.device, dtype=torch.float32).expand(shape)
        if self.predictors is not None:
            return self.predictors[layer].scores(
                x_BTE, self.blocks, column=self.config.column, asking_BN=self.asking_BN
            )
        asked = attention_call(self.parts.layers[layer], self.parts.architecture, x_BTE, arguments)
        return informativeness(
            asked.q_BHGD,
            asked.k_BKGD,
            self.blocks,
            scale=asked.scale,
            column=self.config.column,
            window_tokens=asked.window_tokens,
            asking_BN=self.asking_BN,
        )

    def mlp_elimination(self, layer: int, selection: Selection) -> AbstractContextManager[None]:
        """While the block runs, the MLP of `layer` computes only the most active of the selection's rows."""
        if self.config.mlp_keep_fraction == 1:
            return nullcontext()
        architecture = self.parts.architecture
        assert architecture.mlp is not None, "JengaHandle checks this"
        mlp = getattr(self.parts.layers[layer], architecture.mlp)

        def choose(activation: Callable[[], Tensor]) -> Selection:
            if layer not in self.mlp_selections:
                rows = self.blocks.among(selection.token_index_BG, selection.is_kept_BG)
                self.mlp_selections[layer] = select(
                    rows.mean(activation()),
                    rows,
                    take_rows(self.targets_BT, selection.token_index_BG) != IGNORE,
                    keep_fraction=self.config.mlp_keep_fraction,
                )
            return self.mlp_selections[layer]

        return mlp_of_chosen_rows(mlp, getattr(mlp, architecture.mlp_down), choose)

    def loss_targets(self) -> Tensor:
        """What each of the `loss_rows` should predict, -100 where no loss is taken: B x T, or B x G."""
        if self.config.loss_on == "all":
            return self.targets_BT
        selection = self._last_selection
        return take_rows(self.targets_BT, selection.token_index_BG).masked_fill(~selection.is_kept_BG, IGNORE)

    def loss_rows(self, x_BxE: Tensor) -> Tensor:
        """Of what comes out of the last layer, the rows that loss may be taken on."""
        if self.config.loss_on == "all" or self.config.scope == "carried":
            return x_BxE
        return take_rows(x_BxE, self._last_selection.token_index_BG)

    @property
    def num_labels(self) -> Tensor:
        """As whoever counts the labels of a batch counts them: those that padding would predict included."""
        return (self._given_targets_BT != IGNORE).sum()

    @property
    def _last_selection(self) -> Selection:
        return self.selections[max(self.selections)]

    def _threshold_of(self, layer: int) -> float:
        assert self.thresholds is not None, "JengaHandle checks this"
        return self.thresholds.of_layer(layer)

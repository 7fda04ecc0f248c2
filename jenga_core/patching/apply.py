"""apply_jenga: a transformers model in, the same model with contextual token sparsity in its training forward.

After it, `model(input_ids=..., labels=...)` in train mode returns Jenga's loss, with or without PEFT, an attention
mask, or a batch of more than one; logits are not made. In eval mode, without labels, or with `enabled=False` and
`fused=False`, the model computes bit for bit what it did before. Instances are patched, never classes, and
`handle.undo()` leaves no trace.

What the loss is, is in training_loss.py.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from jenga_core.config import JengaConfig, SelectionConfig
from jenga_core.elimination.thresholds import Thresholds
from jenga_core.errors import ConfigError
from jenga_core.loss.segmented_cross_entropy import IGNORE
from jenga_core.memory.offload import HostMemory
from jenga_core.patching.attention_calls import without_masks
from jenga_core.patching.forwards import Forward, Forwards, is_of_its_library
from jenga_core.patching.fused import fuse
from jenga_core.patching.involvement import Involvement
from jenga_core.patching.layer_runs import LayerRuns
from jenga_core.patching.parts import Parts, parts_of
from jenga_core.patching.report import JengaReport, report_on
from jenga_core.patching.routes import Dense, Route, route_of
from jenga_core.patching.training_loss import check_loss, training_loss
from jenga_core.prediction.predictor import Predictors

_EVERYTHING = SelectionConfig(keep_fraction=1.0, target_fraction=0.0, asked_by="all", loss_on="all")
_LOGGER = logging.getLogger(__name__)
_NOT_FOR_THE_DECODER = frozenset({"labels", "num_items_in_batch", "logits_to_keep", "return_dict", "use_cache"})


_HANDLES: WeakValueDictionary[int, JengaHandle] = WeakValueDictionary()
"""Of patched models, by the id of each, which its handle keeps alive."""


def apply_jenga(model: nn.Module, config: JengaConfig, predictors: Predictors | None = None) -> JengaHandle:
    """Patch this model instance and return the handle that reports on the method and removes it.

    Args:
        model: a transformers causal language model of a supported type, bare or inside a PeftModel.
        config: what to do; `JengaConfig.preset("jenga", keep_fraction=0.4)`.
        predictors: for selection.score = 'predicted' or 'auto'; more in `JengaHandle.use_predictors`.

    Raises:
        UnsupportedModelError: the architecture or the attention implementation is not supported.
        ConfigError: the setting does not fit the model, or the model is patched already.
    """
    if config.enabled and config.selection.score == "predicted" and predictors is None:
        raise ConfigError(
            "selection.score is 'predicted', but no predictors are given; train them with jenga_core.finetuning."
            "predictors.train_predictors, or load them with jenga_core.prediction.store.load, or use score='auto'",
            param="jenga.selection.score",
        )
    handle = JengaHandle(parts_of(model), config)
    if predictors is not None:
        try:
            handle.use_predictors(predictors)
        except ConfigError:
            handle.undo()
            raise
    return handle


def handle_of(model: nn.Module) -> JengaHandle | None:
    """The handle of a model that is patched, bare or inside a PeftModel; None of any other."""
    return _HANDLES.get(id(parts_of(model).causal_lm))


class JengaHandle:
    """The method inside one model, which keeps it alive."""

    def __init__(self, parts: Parts, config: JengaConfig) -> None:
        _check(parts, config)
        self.config = config
        self.parts = parts
        self.thresholds: Thresholds | None = None
        """Layer-specific thresholds, for selection.by = 'threshold'."""
        self.predictors: Predictors | None = None
        """Of block scores; set by `use_predictors`."""
        self.epoch = 0
        """How often the data was seen before; targets move on with it. The trainer counts it."""
        self._enabled = config.enabled
        changes = config.enabled, config.fused, config.recompute != "none", config.attention_group_tokens is not None
        self._is_plain = not any(changes)
        """The model's own training forward runs, to the last bit."""
        self._lean_modules = fuse(parts, recompute_mlp=config.recompute == "mlp") if config.fused else None
        self.last: Involvement | JengaReport | None = None
        """What the last training forward left to report on."""
        self._is_full = False
        self._layer_forwards = tuple(layer.forward for layer in parts.layers)
        self._signature = inspect.signature(parts.causal_lm.forward)
        self._has_warned = False
        self._forwards = Forwards()
        for index, layer in enumerate(parts.layers):
            self._forwards.replace(layer, functools.partial(self._layer_forward, index))
        self._forwards.replace(parts.causal_lm, self._causal_lm_forward)
        _HANDLES[id(parts.causal_lm)] = self

    def report(self) -> JengaReport:
        """What the last training forward did."""
        if isinstance(self.last, Involvement):
            self.last = report_on(self.last, self.score)  # not before: it waits for the GPU
        if self.last is not None:
            return self.last
        return JengaReport(self._enabled, self.score, self.entry_layer, (), (), 0, ())

    @property
    def enabled(self) -> bool:
        """Whether tokens are eliminated in training."""
        return self._enabled

    @property
    def replaces_forward(self) -> bool:
        """Whether training goes the way of this package, and not of the unpatched model."""
        return not self._is_plain

    @property
    def entry_layer(self) -> int:
        """First layer with elimination."""
        entry = self.config.selection.entry_layer
        return self.parts.default_entry_layer if entry is None else entry

    @property
    def score(self) -> str:
        """Where block scores come from, with `auto` resolved: from predictors if there are some, else exact."""
        asked = self.config.selection.score
        if asked == "auto":
            return "exact" if self.predictors is None else "predicted"
        return asked

    @property
    def selecting_layers(self) -> tuple[int, ...]:
        """Layers that choose blocks: the entry layer, or all from there on."""
        if self.config.selection.scope == "carried":
            return (self.entry_layer,)
        return tuple(range(self.entry_layer, len(self.parts.layers)))

    def use_predictors(self, predictors: Predictors) -> None:
        """Score blocks with these from now on, if the config's score is `predicted` or `auto`.

        They move to the model's device. They are no part of the model: its parameters and its state stay as they are.

        Raises:
            ConfigError: a layer that selects has none, or they are for another hidden size.
        """
        missing = [layer for layer in self.selecting_layers if layer not in predictors.layers]
        if missing:
            raise ConfigError(
                f"the predictors are for layers {list(predictors.layers)}, but layers {missing} select, too; train "
                "predictors under this config",
                param="jenga.selection",
            )
        hidden_size = self.parts.causal_lm.config.hidden_size
        for layer in self.selecting_layers:
            if predictors[layer].hidden_size != hidden_size:
                raise ConfigError(
                    f"the predictor of layer {layer} is for hidden size {predictors[layer].hidden_size}, the model has "
                    f"{hidden_size}; load those of this model"
                )
        self.predictors = predictors.to(next(self.parts.causal_lm.parameters()).device)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model's own dense forward, while the block runs."""
        before = self._enabled, self._is_plain
        self._enabled, self._is_plain = False, True
        try:
            yield
        finally:
            self._enabled, self._is_plain = before

    @contextmanager
    def full_windows(self) -> Iterator[None]:
        """While the block runs, sequences are taken to be full windows, and forward does not wait for the GPU.

        Every token is real, of the sequence's one document, and has a label that the head knows; whoever calls has
        looked, and passes neither mask nor positions. Needs a model that attends by sdpa and without sliding windows.
        """
        before, self._is_full = self._is_full, True
        try:
            yield
        finally:
            self._is_full = before

    def undo(self) -> None:
        """Give the model its own forwards back. Harmless when repeated."""
        self._forwards.undo()
        if _HANDLES.get(id(self.parts.causal_lm)) is self:
            del _HANDLES[id(self.parts.causal_lm)]
        if self._lean_modules is not None:
            self._lean_modules.undo()

    def _begin_step(self, *, lean: bool) -> None:
        if self._lean_modules is not None:
            self._lean_modules.begin_step(active=lean)

    def _layer_forward(
        self, index: int, forward: Forward, *args: Any, jenga_route: Route | None = None, **kwargs: Any
    ) -> Any:
        if jenga_route is None:
            return forward(*args, **kwargs)
        (hidden_states,) = args  # transformers passes a layer's other arguments by name
        return jenga_route.through_layer(index, hidden_states, kwargs)

    def _causal_lm_forward(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        given = self._signature.bind(*args, **kwargs).arguments
        others = given.pop("kwargs", {})
        given = {**given, **others}
        learns = self.parts.causal_lm.training and given.get("labels") is not None
        if not learns or self._is_plain:
            if self.parts.causal_lm.training and torch.is_grad_enabled() and not self._is_plain:
                self._warn_of_no_labels()
            self._begin_step(lean=False)
            return forward(*args, **kwargs)
        output = self._training_forward(given)
        return output.to_tuple() if given.get("return_dict") is False else output

    def _warn_of_no_labels(self) -> None:
        if not self._has_warned:
            _LOGGER.warning(
                "a forward in train mode has no labels, so the model computes it densely, as its own; pass them to the "
                "model (transformers' Trainer takes them away for label smoothing)"
            )
        self._has_warned = True

    def run(self, given: Mapping[str, Any], selection: SelectionConfig | None) -> tuple[Tensor, Involvement]:
        """The decoder's output under a selection: the hidden rows that meet `involvement.loss_targets()`.

        Without a selection every token is involved in every layer. `given` are the model's own arguments, labels
        included. Works in train and in eval mode, with and without gradient.
        """
        arguments = {name: value for name, value in given.items() if name not in _NOT_FOR_THE_DECODER}
        mask = given.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise ConfigError(
                f"attention_mask must be 2-D (batch x tokens), got {mask.dim()}-D", param="attention_mask"
            )
        if given.get("past_key_values") is not None or given.get("use_cache"):
            name = "use_cache" if given.get("past_key_values") is None else "past_key_values"
            raise ConfigError(
                f"training with Jenga takes no key-value cache, but {name} is given; pass use_cache=False and no "
                "past_key_values",
                param=name,
            )
        if selection is not None and selection.by == "threshold" and self.thresholds is None:
            raise ConfigError(
                "selection.by is 'threshold', but no thresholds are set; compute them with "
                "jenga_core.finetuning.thresholds.calibrate, or load them into handle.thresholds",
                param="jenga.selection.by",
            )
        targets_BT = given["labels"].roll(-1, dims=1)
        targets_BT[:, -1] = IGNORE
        involvement = Involvement(
            _EVERYTHING if selection is None else selection,
            self.parts,
            entry_layer=self.entry_layer,
            thresholds=self.thresholds,
            predictors=self.predictors if self.score == "predicted" else None,
            targets_BT=targets_BT,
            attention_mask=mask,
            position_ids=given.get("position_ids"),
            epoch=self.epoch,
            is_full=self._is_full,
        )
        layers = LayerRuns(
            involvement,
            self._layer_forwards,
            recompute=self.config.recompute,
            host=HostMemory.of(given["labels"].device) if self.config.offload and torch.is_grad_enabled() else None,
            attention_group_tokens=self.config.attention_group_tokens,
            attention_sink_tokens=self.config.attention_sink_tokens,
        )
        self._begin_step(lean=True)
        route = Dense(layers) if selection is None else route_of(layers)
        with without_masks(self.parts.decoder) if self._is_full else nullcontext():
            output = self.parts.decoder(**arguments, use_cache=False, jenga_route=route)
        return involvement.loss_rows(output.last_hidden_state), involvement

    def _training_forward(self, given: dict[str, Any]) -> CausalLMOutputWithPast:
        selection = self.config.selection if self._enabled else None
        has_exact_pass = selection is not None and selection.has_exact_pass
        if (has_exact_pass or self.config.recompute == "full") and self.parts.decoder.gradient_checkpointing:
            raise ConfigError(
                "the model's gradient checkpointing is on, but these layers are computed again already; turn it off "
                "(jenga.recompute does what it does), or use below_entry='involved', unselected='eliminated' and "
                "recompute='none'",
                param="jenga.recompute",
            )
        if self.config.recompute == "mlp" and torch.is_autocast_enabled(given["labels"].device.type):
            raise ConfigError(
                "recompute='mlp' is done by the fused MLP, which leaves autocast to the model's own, and that keeps "
                "everything; load the model in bfloat16 and train it without autocast, or use recompute='full'",
                param="jenga.recompute",
            )
        check_loss(self.parts, given)
        hidden, involvement = self.run(given, selection)
        loss = training_loss(
            hidden,
            involvement,
            self.parts,
            segment_tokens=self.config.loss.segment_tokens,
            num_items_in_batch=given.get("num_items_in_batch"),
        )
        if selection is not None:
            self.last = involvement
        return CausalLMOutputWithPast(loss=loss)


def _check(parts: Parts, config: JengaConfig) -> None:
    if id(parts.causal_lm) in _HANDLES:
        raise ConfigError("the model is patched already; call undo() on its handle first")
    changes_the_model = config.enabled or config.fused or config.recompute != "none" or config.attention_group_tokens
    if changes_the_model and not is_of_its_library(parts.causal_lm):
        forward = parts.causal_lm.forward
        found = f"{getattr(forward, '__module__', '')}.{getattr(forward, '__qualname__', type(forward).__qualname__)}"
        wrapped = ", wrapped by somebody" if hasattr(forward, "__wrapped__") else ""
        raise ConfigError(
            f"the model's forward is {found}{wrapped}, which training with Jenga would bypass; apply Jenga to the "
            "model as transformers makes it, and wrap it afterwards"
        )
    if config.recompute == "mlp" and not config.fused:
        raise ConfigError(
            "recompute='mlp' is done by the fused MLP; leave fused at True, or use recompute='full'",
            param="jenga.recompute",
        )
    selection, num_layers = config.selection, len(parts.layers)
    norms_the_sum = not getattr(parts.causal_lm.config, "do_layer_norm_before", True)
    if norms_the_sum and selection.scope == "per_layer" and selection.unselected == "forward_only":
        raise ConfigError(
            "a model that norms the residual stream itself (do_layer_norm_before=False) has no residual path for the "
            "gradient of forward-only tokens that come back; use scope='carried', or unselected='eliminated'",
            param="jenga.selection",
        )
    if selection.mlp_keep_fraction < 1 and parts.architecture.mlp is None:
        model_type = parts.causal_lm.config.model_type
        raise ConfigError(
            f"models of type {model_type!r} compute the MLP inside the layer, which cannot be given fewer rows; "
            "leave mlp_keep_fraction at 1",
            param="jenga.selection.mlp_keep_fraction",
        )
    if selection.entry_layer is not None and selection.entry_layer >= num_layers:
        raise ConfigError(
            f"entry_layer {selection.entry_layer} is past the model's last layer; it has {num_layers} layers, "
            f"so give 0 to {num_layers - 1}",
            param="jenga.selection.entry_layer",
        )
    implementation = parts.causal_lm.config._attn_implementation
    if config.enabled and selection.has_exact_pass and implementation == "flash_attention_2":
        raise ConfigError(
            "forward-only tokens need attn_implementation 'sdpa' or 'eager', and the model was loaded with "
            f"{implementation!r}; load it with one of these, or use below_entry='involved' and unselected='eliminated'",
            param="jenga.selection",
        )

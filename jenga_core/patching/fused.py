"""The modules of a model that have a lean form, computed in it while the model trains.

    peft's LoRA on a frozen linear layer         layers/lora_linear.py
    RMSNorm, Llama's and Gemma's                 layers/rms_norm.py
    gated MLP of frozen linear layers            layers/gated_mlp.py
    frozen linear layer and ReLU, OPT's          layers/relu_linear.py
    attention with q, k, v, rotary and o         fused_attention.py, layers/rotary.py

Lean means: the same function and the same gradients to within rounding, less kept for backward, fewer passes over
memory. A module is recognised by the qualified name of its class, where its forward is the one that its library ships.
Any other, and any call that the lean form does not cover (autocast, a weight that is trained, a hook on a module that
it would pass by, dropout, an adapter that is merged or not alone), is left to the module itself, and so is every call
while the model does not train.

The forward of an instance is replaced, never that of a class; parameters and state stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn

from jenga_core.errors import ConfigError
from jenga_core.layers.gated_mlp import gated_mlp
from jenga_core.layers.lora_linear import Casts, lora_linear
from jenga_core.layers.relu_linear import is_relu, relu_linear
from jenga_core.layers.rms_norm import rms_norm
from jenga_core.patching.forwards import Forward, Forwards, is_of_its_library, is_unobserved
from jenga_core.patching.fused_attention import class_name, lean_attention
from jenga_core.patching.parts import Parts
from jenga_core.patching.projections import projection_of

_RMS_NORMS: Mapping[str, tuple[str, float]] = {
    "llama.modeling_llama.LlamaRMSNorm": ("variance_epsilon", 0.0),
    "mistral.modeling_mistral.MistralRMSNorm": ("variance_epsilon", 0.0),
    "qwen2.modeling_qwen2.Qwen2RMSNorm": ("variance_epsilon", 0.0),
    "qwen3.modeling_qwen3.Qwen3RMSNorm": ("variance_epsilon", 0.0),
    "phi3.modeling_phi3.Phi3RMSNorm": ("variance_epsilon", 0.0),
    "gemma2.modeling_gemma2.Gemma2RMSNorm": ("eps", 1.0),
    "gemma3.modeling_gemma3.Gemma3RMSNorm": ("eps", 1.0),
}
"""The attribute that holds epsilon, and what is added to the weight."""

_GATED_MLPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "llama.modeling_llama.LlamaMLP": ("act_fn", ("gate_proj", "up_proj")),
    "mistral.modeling_mistral.MistralMLP": ("act_fn", ("gate_proj", "up_proj")),
    "qwen2.modeling_qwen2.Qwen2MLP": ("act_fn", ("gate_proj", "up_proj")),
    "qwen3.modeling_qwen3.Qwen3MLP": ("act_fn", ("gate_proj", "up_proj")),
    "gemma2.modeling_gemma2.Gemma2MLP": ("act_fn", ("gate_proj", "up_proj")),
    "gemma3.modeling_gemma3.Gemma3MLP": ("act_fn", ("gate_proj", "up_proj")),
    "phi3.modeling_phi3.Phi3MLP": ("activation_fn", ("gate_up_proj",)),
}
"""The attribute that holds the activation, and those of gate and up, or of both one above the other."""

_RELU_MLPS: Mapping[str, tuple[str, str]] = {"opt.modeling_opt.OPTDecoderLayer": ("fc1", "activation_fn")}
"""Layers that compute an MLP in their own forward: the attributes of its first linear layer and of its activation."""

_NORMED_MLPS = frozenset({"gemma2.modeling_gemma2.Gemma2MLP", "gemma3.modeling_gemma3.Gemma3MLP"})
"""Those whose output the layer norms before it adds it."""

_ACTIVATIONS: Mapping[str, str] = {
    "torch.nn.modules.activation.SiLU": "silu",
    "transformers.activations.SiLUActivation": "silu",
    "transformers.activations.GELUTanh": "gelu_tanh",
}

Lean = Callable[..., Any]
"""Returns NotImplemented for a call that must be left to the module."""


class Fused:
    """The lean forms inside one model; `fuse` makes it."""

    def __init__(self, parts: Parts, *, recompute_mlp: bool) -> None:
        self.active = False
        """Whether the lean forms are in use."""
        self._casts = Casts()
        self.recompute_mlp = recompute_mlp
        """Gated MLPs keep only their input for backward, and make gate and up again there."""
        self._forwards = Forwards()
        ours = [module for layer in parts.layers if is_of_its_library(layer) for module in layer.modules()]
        self._in_known_layers = frozenset(ours)
        for module in parts.decoder.modules():
            lean = self._lean_form(module)
            if lean is not None:
                self._replace(module, lean)
            if class_name(module) in _RELU_MLPS:
                linear, activation = _relu_mlp(module)
                if type(linear) is nn.Linear and type(activation) is nn.ReLU:
                    self._replace(linear, functools.partial(_linear_before_relu, module))
                    self._replace(activation, _relu_once)
        if recompute_mlp:
            self._check_mlps(parts)

    def begin_step(self, *, active: bool) -> None:
        """The owner of the model's forward calls this at the start of each of its calls, and what it says holds until
        the next: in backward, gradient checkpointing calls the modules again, which must find what forward found."""
        self.active = active
        self._casts.begin_step()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those that have a lean form."""
        return self._forwards.modules

    def undo(self) -> None:
        """Give every module its own forward back. Harmless when repeated."""
        self._forwards.undo()

    def _lean_form(self, module: nn.Module) -> Lean | None:
        name = class_name(module)
        if type(module) is LoraLayer:
            return functools.partial(_lora, module, self._casts)
        if name in _RMS_NORMS:
            epsilon, offset = _RMS_NORMS[name]
            return functools.partial(_norm, module, getattr(module, epsilon), offset)
        if name in _GATED_MLPS:
            return functools.partial(self._mlp, module)
        return lean_attention(name, module, self._casts)

    def _replace(self, module: nn.Module, lean: Lean) -> None:
        """Not where somebody else's forward is in place: it may compute anything."""
        if not is_of_its_library(module):
            return

        def either(forward: Forward, *args: Any, **kwargs: Any) -> Any:
            if self.active and module.training:
                result = lean(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            return forward(*args, **kwargs)

        self._forwards.replace(module, either, is_lean=True)

    def _mlp(self, module: nn.Module, x: Tensor) -> Any:
        found = _frozen_mlp(module, x)
        if found is None:
            return NotImplemented
        activation, weights = found
        is_only_added = class_name(module) not in _NORMED_MLPS and module in self._in_known_layers
        ends_layer = is_only_added and is_unobserved(module)
        return gated_mlp(x, *weights, activation=activation, recompute=self.recompute_mlp, ends_layer=ends_layer)

    def _check_mlps(self, parts: Parts) -> None:
        """Raise ConfigError unless every layer has a lean MLP: it alone can recompute gate and up."""
        probe = next(parts.decoder.parameters())
        lean = sum(
            any(class_name(module) in _GATED_MLPS and _frozen_mlp(module, probe) for module in layer.modules())
            for layer in parts.layers
        )
        if lean < len(parts.layers):
            self.undo()
            others = f"{len(parts.layers) - lean} of {len(parts.layers)} MLPs of this {type(parts.causal_lm).__name__}"
            raise ConfigError(
                "recompute='mlp' needs gated MLPs of frozen weights without bias or adapter, which "
                f"{others} are not; use recompute='full'",
                param="jenga.recompute",
            )


def fuse(parts: Parts, *, recompute_mlp: bool = False) -> Fused:
    """Give the decoder's modules their lean forms, which are in use after `begin_step(active=True)`."""
    return Fused(parts, recompute_mlp=recompute_mlp)


def _frozen_mlp(module: nn.Module, x: Tensor) -> tuple[str, list[Tensor]] | None:
    """Its activation and its weights of gate, up and down; None if they are not what the lean form computes."""
    activation, gate_and_up = _GATED_MLPS[class_name(module)]
    act = getattr(module, activation)
    kind = _ACTIVATIONS.get(f"{type(act).__module__}.{type(act).__qualname__}")
    if kind is None or not is_unobserved(act):
        return None
    weights: list[Tensor] = []
    for name in (*gate_and_up, "down_proj"):
        projection = projection_of(getattr(module, name), x)
        if projection is None or projection.bias_O is not None or projection.adapter is not None:
            return None
        weights.append(projection.weight_OI)
    if len(gate_and_up) == 1:
        weights[:1] = weights[0].chunk(2)
    return kind, weights


def _lora(module: nn.Module, casts: Casts, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    projection = projection_of(module, x)
    return NotImplemented if projection is None or args or kwargs else lora_linear(x, projection, casts)


def _relu_mlp(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    linear, activation = _RELU_MLPS[class_name(layer)]
    return getattr(layer, linear), getattr(layer, activation)


def _linear_before_relu(layer: nn.Module, x: Tensor) -> Any:
    """With the ReLU, if that is still what comes next and nobody looks between them."""
    linear, activation = _relu_mlp(layer)
    if type(linear) is not nn.Linear or type(activation) is not nn.ReLU or not is_unobserved(activation):
        return NotImplemented
    projection = projection_of(linear, x)
    return NotImplemented if projection is None else relu_linear(x, projection.weight_OI, projection.bias_O)


def _relu_once(x: Tensor) -> Any:
    return x if is_relu(x) else NotImplemented


def _norm(module: Any, epsilon: float, offset: float, x: Tensor) -> Any:
    if module.weight.requires_grad or torch.is_autocast_enabled(x.device.type) or not x.is_floating_point():
        return NotImplemented
    return rms_norm(x, module.weight, epsilon=epsilon, offset=offset)

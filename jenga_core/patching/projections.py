"""A linear layer of a model, with peft's adapter or without, as the constants and the trained matrices that it is.

Only what is recognised exactly becomes a `Projection`; anything else must be called as the module that it is.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import Tensor, nn

from jenga_core.layers.lora_linear import Adapter, Projection
from jenga_core.patching.forwards import is_unobserved


def projection_of(linear: nn.Module, x: Tensor) -> Projection | None:
    """The frozen linear layer, with its adapter if it has one; None if it is anything else, or x does not suit it."""
    base, adapter = linear, None
    if isinstance(linear, LoraLayer):
        base, adapter = linear.get_base_layer(), _adapter_of(linear)
        if adapter is None:
            return None
    if not (type(base) is nn.Linear and is_unobserved(base)):
        return None
    is_trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    if is_trained or base.weight.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
        return None
    return Projection(base.weight, base.bias, adapter)


def _adapter_of(linear: Any) -> Adapter | None:
    """The one active adapter, if it is plain: neither merged nor switched off, no dropout, bias or variant of LoRA."""
    names = [name for name in linear.active_adapters if name in linear.lora_A]
    if len(names) != 1 or type(linear) is not LoraLayer or not is_unobserved(linear):
        return None
    if linear.disable_adapters or linear.merged or linear.fan_in_fan_out or linear.lora_variant:
        return None
    a, b, dropout = linear.lora_A[names[0]], linear.lora_B[names[0]], linear.lora_dropout[names[0]]
    is_plain = type(a) is nn.Linear and type(b) is nn.Linear and a.bias is None and b.bias is None
    drops_nothing = type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and dropout.p == 0)
    if not (is_plain and drops_nothing and all(map(is_unobserved, (a, b, dropout)))):
        return None
    return Adapter(a.weight, b.weight, linear.scaling[names[0]])

"""Forwards of module instances that stand in for their own, until `undo`.

The class is never touched. A deep copy of a patched module is a module of its class, unpatched. What somebody else
wraps around a replaced forward stays when it is undone; the replaced one then passes its calls on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn

Forward = Callable[..., Any]

_MARK = "jenga_mark"


@dataclass(frozen=True)
class _Mark:
    """What is known of a replaced forward; of those that wrap it, which inherit its attributes, nothing."""

    itself: Forward
    module: nn.Module
    is_lean: bool
    """It computes the same as that of the module's class."""


class Forwards:
    """Those that one owner has replaced."""

    def __init__(self) -> None:
        self._replaced: dict[nn.Module, tuple[Forward, Forward | None]] = {}
        """By module: the forward that stands in, and the one that the instance had of its own."""
        self._is_undone = False

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Whose forward is replaced."""
        return tuple(self._replaced)

    def replace(self, module: nn.Module, stand_in: Forward, *, is_lean: bool = False) -> None:
        """From now on `stand_in(forward, *args, **kwargs)` is called; `forward` is the one before."""
        own = _own_forward(module)
        before: Forward = MethodType(type(module).forward, module) if own is None else own

        @functools.wraps(before)
        def forward(caller: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if caller is not module:
                return type(caller).forward(caller, *args, **kwargs)
            return before(*args, **kwargs) if self._is_undone else stand_in(before, *args, **kwargs)

        arguments = inspect.signature(before)
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        vars(forward)["__signature__"] = arguments.replace(parameters=[itself, *arguments.parameters.values()])
        vars(forward)[_MARK] = _Mark(forward, module, is_lean)
        del vars(forward)["__wrapped__"]  # who unwraps what others put around it must not unwrap it, too
        method = MethodType(forward, module)
        self._replaced[module] = method, own
        module.forward = method

    def undo(self) -> None:
        """Give every module its own forward back. Harmless when repeated."""
        self._is_undone = True
        for module, (method, own) in self._replaced.items():
            if module.__dict__.get("forward") is not method:
                continue  # wrapped since
            if own is None:
                del module.__dict__["forward"]
            else:
                module.forward = own
        self._replaced = {}


def is_of_its_library(module: nn.Module) -> bool:
    """Whether the forward is that of the class as transformers, peft or PyTorch ship it: nobody has replaced it, in the
    instance or in the class."""
    library = type(module).forward.__module__.partition(".")[0]
    return _own_forward(module) is None and library in ("transformers", "peft", "torch")


def is_unobserved(module: nn.Module) -> bool:
    """Whether nobody notices that the module is not called: it has no hook, and the forward of its class or a lean
    one."""
    own = _own_forward(module)
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and (own is None or getattr(_mark_of(own), "is_lean", False))


def _own_forward(module: nn.Module) -> Forward | None:
    """What the instance has in place of its class's. A copy's is that of the module that it was copied from."""
    own: Forward | None = module.__dict__.get("forward")
    if isinstance(own, MethodType) and own.__self__ is module and own.__func__ is type(module).forward:
        return None
    mark = _mark_of(own)
    return own if mark is None or mark.module is module else None


def _mark_of(forward: Forward | None) -> _Mark | None:
    function = forward.__func__ if isinstance(forward, MethodType) else None
    mark: _Mark | None = getattr(function, _MARK, None)
    return mark if mark is not None and mark.itself is function else None

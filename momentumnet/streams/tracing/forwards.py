"""Modules whose ``forward`` is called, or goes through a function for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


@contextmanager
def wrapped_forwards(modules: Iterable[nn.Module], wrapper: Callable[..., Any]) -> Iterator[None]:
    """Call ``wrapper(module, forward, *args, **kwargs)`` for the modules' forward while the body runs.

    That is within their calls, so that hooks and converted blocks stay.
    """
    wrapped = [(module, module.__dict__.get("forward")) for module in dict.fromkeys(modules)]
    try:
        for module, _ in wrapped:
            module.__dict__["forward"] = _wrapped(module, wrapper)
        yield
    finally:
        for module, own in wrapped:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own


def _wrapped(module: nn.Module, wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """The module's forward through the wrapper; whoever looks at it sees a method of the signature that it has."""
    forward = module.forward

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return wrapper(module, forward, *args, **kwargs)

    return MethodType(wraps(type(module).forward)(call), module)


@contextmanager
def forwards_as_calls(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, who calls the modules' forward calls them, so that hooks see it that are registered inside.

    Not those that the modules have had before, as they are called past them.
    """
    modules = list(modules)
    hooks = [(module, name, module.__dict__[name]) for module in modules for name in _HOOKS if name in module.__dict__]
    try:
        for module, name, _ in hooks:
            module.__dict__[name] = OrderedDict()
        with wrapped_forwards(modules, _called):
            yield
    finally:
        for module, name, own in hooks:
            module.__dict__[name] = own


def _called(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    wrapper = module.__dict__.pop("forward")
    try:
        return module(*args, **kwargs)
    finally:
        module.__dict__["forward"] = wrapper


def uncalled_siblings(model: nn.Module, called: Collection[nn.Module | None]) -> list[list[str]]:
    """Names of modules of one class in one place that are not called themselves, while what they hold may be used."""
    found: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name, module in model.named_modules():
        if module in called or isinstance(module, torch.jit.ScriptModule):  # whose calls no hook sees
            continue
        is_own = not type(module).__module__.startswith("torch.nn.") and next(module.parameters(), None) is not None
        is_made_of_others = next(module.children(), None) is not None
        if (is_own or is_made_of_others) and type(module).forward is not nn.Module.forward:
            found.setdefault((name.rpartition(".")[0], type(module)), []).append(name)
    return [names for names in found.values() if len(names) > 1]

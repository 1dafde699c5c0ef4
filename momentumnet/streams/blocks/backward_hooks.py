"""Hooks that a backward calls, off while a model is looked at: they are for the gradients of a training."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_OF_MODULE = ("_backward_hooks", "_backward_pre_hooks")
# Those of all modules there are.
_OF_ALL: tuple[dict[int, Any], ...] = (
    nn.modules.module._global_backward_hooks,
    nn.modules.module._global_backward_pre_hooks,
)
_lock = threading.Lock()
_users = 0
_aside: list[dict[int, Any]] = []


@contextmanager
def backward_hooks_off(model: nn.Module) -> Iterator[None]:
    """Those of its modules and parameters, and PyTorch's of all modules, these for other threads, too.

    PyTorch puts a function around a module that has some, behind which its input and output are other tensors than its
    caller's. Hooks that a forward leaves on a parameter in here are gone at the end; what it leaves on modules the
    caller has to take away.
    """
    parameters = list(model.parameters())
    hooks = [parameter._backward_hooks for parameter in parameters]
    added = [dict(parameter._post_accumulate_grad_hooks or {}) for parameter in parameters]
    _global_ones_off()
    try:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.__dict__.update({name: OrderedDict() for name in _OF_MODULE})
        for parameter, own in zip(parameters, hooks, strict=True):
            if own:
                parameter._backward_hooks = None
            if parameter._post_accumulate_grad_hooks:  # one may step an optimizer
                parameter._post_accumulate_grad_hooks.clear()
        yield
    finally:
        for parameter, own, behind in zip(parameters, hooks, added, strict=True):
            if parameter._backward_hooks is not own:
                parameter._backward_hooks = own
            if parameter._post_accumulate_grad_hooks:
                # In the dict that it has: PyTorch goes on to call those of one that is taken from it.
                parameter._post_accumulate_grad_hooks.clear()
            if behind:
                parameter._post_accumulate_grad_hooks.update(behind)
        _global_ones_on()


def _global_ones_off() -> None:
    global _users
    with _lock:
        if not _users:
            _aside.extend(map(dict, _OF_ALL))
            for hooks in _OF_ALL:
                hooks.clear()
        _users += 1


def _global_ones_on() -> None:
    global _users
    with _lock:
        _users -= 1
        if not _users:
            for hooks, own in zip(_OF_ALL, _aside, strict=True):
                made = dict(hooks)  # meanwhile, by another thread
                hooks.clear()
                hooks.update(own | made)
            _aside.clear()

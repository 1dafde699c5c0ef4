"""All or nothing: an initialisation that fails midway leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Where a module keeps its tensors, children and hooks: what an initialisation may change.
_TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Put the model back as it was if the body raises anything, a KeyboardInterrupt included.

    Put back are the values of all parameters and buffers (in place: an optimizer that holds them stays valid), their
    ``requires_grad`` and ``grad``, each module's parameters, buffers, children and hooks, its training mode and its
    other attributes (which objects they are, not what those hold). Costs a copy of the parameters and buffers while the
    body runs.

    Example:
        ::

            with all_or_nothing(model):
                for parameter in model.parameters():
                    parameter.data.mul_(2)
                raise ValueError("no good")  # the model is as before
    """
    modules = list(model.modules())
    tables = [{name: dict(getattr(module, name)) for name in _TABLES} for module in modules]
    attributes = [dict(module.__dict__) for module in modules]
    tensors = {
        id(tensor): tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    }  # fmt: skip
    values = [
        (tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad, _copy(tensor.grad))
        for tensor in tensors.values()
    ]
    try:
        yield
    except BaseException:
        for module, kept, attribute in zip(modules, tables, attributes, strict=True):
            _refill(module.__dict__, attribute)
            for name, entries in kept.items():
                _refill(getattr(module, name), entries)
        with torch.no_grad():
            for tensor, value, requires_grad, grad, grad_value in values:
                tensor.copy_(value)
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad
                if grad is not None and grad_value is not None:
                    grad.copy_(grad_value)
        raise


def _copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _refill(table: dict[Any, Any], entries: dict[Any, Any]) -> None:
    """In place: hooks' handles refer to the very tables of their module."""
    table.clear()
    table.update(entries)

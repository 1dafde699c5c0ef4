"""Tensors in what a module takes and returns: values nested in tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from momentumnet.recompute.arguments.caches import is_cache
from momentumnet.recompute.values import object_copies


def floating(value: Any) -> bool:
    """Whether ``value`` is a floating-point tensor."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def has_sizes(value: Any) -> bool:
    """Whether it is one that can be asked for its sizes, as a nested one cannot."""
    return floating(value) and not value.is_nested


def stream_output(output: Any) -> torch.Tensor | None:
    """The stream tensor in what a block returned: a tensor, or the first element of a tuple, list or dict.

    A nested one carries no stream that could be found: its sizes cannot be told.
    """
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if has_sizes(output) else None


def outputs_beside(output: Any) -> list[tuple[int, torch.Tensor]]:
    """The floating-point tensors that a block returned beside the stream's, with their places."""
    items = list(output.values()) if isinstance(output, dict) else output
    if not isinstance(items, (tuple, list)):
        return []
    return [(place, item) for place, item in enumerate(items) if place and has_sizes(item)]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def tensors_inside(value: Any) -> list[torch.Tensor]:
    """The tensors in what a model returns: also in objects of a class of its own, as a dataclass, each once.

    But for key-value caches, which blocks that are recomputed do not fill.
    """
    return _inside(leaf for leaf in pytree.tree_leaves(value) if not is_cache("", leaf))


def tensors_cached(value: Any) -> list[torch.Tensor]:
    """The tensors in the key-value caches of what a model returns, each once."""
    return _inside(leaf for leaf in pytree.tree_leaves(value) if is_cache("", leaf))


def _inside(leaves: Iterable[Any]) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        return found.setdefault(id(tensor), tensor)

    for leaf in leaves:
        object_copies.copied(leaf, seen)
    return list(found.values())


def copied(value: Any) -> Any:
    """The same nested value with every tensor cloned, so that the model cannot write into what the caller has.

    One that takes a gradient takes it in the copy, too.

    Objects (a key-value cache) are copied with their tensors, too, as far as `object_copies.copied` copies them.
    """
    if isinstance(value, torch.Tensor):
        return _cloned(value)
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copied(item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(copied(item) for item in value)
    return object_copies.copied(value, _cloned)


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    clone = tensor.detach().clone()
    if not tensor.requires_grad:
        return clone
    clone.requires_grad_()
    return clone if tensor.is_leaf else _Own.apply(clone)


class _Own(torch.autograd.Function):
    """Makes a tensor no leaf, over the same memory, so that it may be overwritten as what others have computed."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.data

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad

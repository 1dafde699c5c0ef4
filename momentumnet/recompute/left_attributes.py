"""Attributes of modules that a call changes: a counter, statistics, an auxiliary loss.

A recompute begins with the numbers that the call began with. It leaves its own behind: a second count, or a tensor
whose graph nobody goes through, which would live until the next forward with all that the recompute has saved. So what
stood there before it is put back.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# By block, the plain tensors on attributes that its recomputes overwrite: looked for in the first one.
_OVERWRITTEN: weakref.WeakKeyDictionary[nn.Module, list[tuple[int, str]]] = weakref.WeakKeyDictionary()
_NUMBERS = (bool, int, float, complex, str, type(None))


def left_by_a_call(module: nn.Module) -> list[str]:
    """The module's own attributes that hold a tensor with a history."""
    return [name for name, value in vars(module).items() if isinstance(value, Tensor) and value.grad_fn is not None]


class Attributes:
    """What a call changes of the attributes of its modules; to be made before its first run.

    Args:
        modules: the block, and all in it.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._before: list[dict[str, Any]] = [vars(module).copy() for module in modules]
        self._changed: list[tuple[dict[str, Any], dict[str, Any], Sequence[str]]] = []

    def forget_unchanged(self) -> None:
        """The first run has ended: what it has changed is kept, if it was a number, or a tensor without a history."""
        for module, before in zip(self._modules, self._before, strict=True):
            now = vars(module)
            if not _is_as(now, before):
                changed = {name: value for name, value in before.items() if now.get(name) is not value}
                plain = {name: value for name, value in changed.items() if _is_plain(value)}
                self._changed.append((now, plain, [name for name in now if name not in before]))
        self._before = []

    def put_back(self) -> None:
        """As if the first run had not been."""
        for attributes, seen, new in self._changed:
            for name in new:
                attributes.pop(name, None)
            attributes.update(seen)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Context of a recompute: it sees what the first run saw, and all is and holds what it was before."""
        before = [vars(module).copy() for module in self._modules]
        tensors = _tensors(self._modules)
        self.put_back()
        try:
            yield
        finally:
            for module, attributes in zip(self._modules, before, strict=True):
                if not _is_as(vars(module), attributes):
                    _make_as(vars(module), attributes)
            _write_back(self._modules[0], tensors)


def _is_plain(value: Any) -> bool:
    return type(value) in _NUMBERS or (type(value) is Tensor and not value.requires_grad)


def _is_as(attributes: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether they are the same objects."""
    return len(attributes) == len(before) and all(map(operator.is_, attributes.values(), before.values()))


def _make_as(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in attributes.keys() - before.keys():
        del attributes[name]
    attributes.update(before)


def _tensors(modules: Sequence[nn.Module]) -> list[tuple[int, str, Tensor, int, Tensor]]:
    """Place, name, counter and value of the tensors that may be overwritten: all of them, until that is known."""
    known = _OVERWRITTEN.get(modules[0])
    if known is None:
        known = [(place, name) for place, module in enumerate(modules) for name in vars(module)]
    found = []
    for place, name in known:
        tensor = vars(modules[place]).get(name) if place < len(modules) else None
        if isinstance(tensor, Tensor) and not tensor.requires_grad and not tensor.is_inference():
            found.append((place, name, tensor, tensor._version, tensor.clone()))
    return found


def _write_back(block: nn.Module, tensors: Sequence[tuple[int, str, Tensor, int, Tensor]]) -> None:
    changed = [found for found in tensors if found[2]._version != found[3]]
    for _, _, tensor, _, value in changed:
        tensor.data.copy_(value)  # through .data: graphs that saved it stay valid
    _OVERWRITTEN.setdefault(block, [(place, name) for place, name, *_ in changed])

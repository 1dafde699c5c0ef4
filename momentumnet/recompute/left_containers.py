"""Lists, dicts, sets and deques on attributes of modules that a call changes: records, counters, states by name.

A recompute begins with what the call began with, and leaves its own entries behind as little as `left_attributes` its
attributes: a record has one entry for each forward. Which containers there are is looked for in a block's first call,
and again where its modules have got or lost an attribute since.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from momentumnet.recompute.objects import CONTAINERS, OF_MODULE

_DICTS = (dict, OrderedDict, defaultdict)
# More containers than this belong to the program around the network, as do larger dicts and sets, and deques.
_MOST_CONTAINERS, _MOST_ENTRIES, _MOST_OF_A_DEQUE = 64, 1024, 1 << 16
# Of a longer list, a record of all steps, the last entries are looked at.
_LAST = 256

Place = tuple[int, str]


class _Known(NamedTuple):
    """Where a block's modules hold containers, as far as it has been looked for."""

    sizes: list[int]
    places: list[Place]


# By block.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


class _Entries(NamedTuple):
    """A container, and what it holds: values, beside them the keys of a dict, in front of them other ones of a list."""

    container: Any
    keys: list[Any]
    values: list[Any]
    start: int = 0

    @classmethod
    def of(cls, container: Any) -> _Entries:
        if type(container) in _DICTS:
            return cls(container, list(container.keys()), list(container.values()))
        if type(container) is list and len(container) > _MOST_ENTRIES:
            start = len(container) - _LAST
            return cls(container, [], container[start:], start)
        return cls(container, [], list(container))

    @property
    def is_as(self) -> bool:
        """Whether it holds the same objects still."""
        if len(self.container) != self.start + len(self.values):
            return False
        now = self.container[self.start :] if self.start else self.container
        if type(self.container) not in _DICTS:
            return all(map(operator.is_, now, self.values))
        return all(map(operator.is_, now, self.keys)) and all(map(operator.is_, now.values(), self.values))

    def put_back(self) -> None:
        """Have it hold them again."""
        if type(self.container) is list:
            self.container[self.start :] = self.values
        elif type(self.container) is deque:
            self.container.clear()
            self.container.extend(self.values)
        else:
            self.container.clear()
            self.container.update(zip(self.keys, self.values, strict=True) if self.keys else self.values)


class Containers:
    """What a call changes in containers on attributes of its modules; to be made before its first run.

    Args:
        block: which is called.
        modules: those of the block, and it itself.
    """

    def __init__(self, block: nn.Module, modules: Sequence[nn.Module]) -> None:
        self._block, self._modules = block, modules
        self._before = self._now()
        self._changed: list[_Entries] = []

    def _now(self) -> list[_Entries]:
        sizes = [len(module.__dict__) for module in self._modules]
        known = _KNOWN.get(self._block)
        if known is None or known.sizes != sizes:
            known = _KNOWN[self._block] = _Known(sizes, _places(self._modules))
        if not known.places:
            return []
        held = (vars(self._modules[number]).get(name) for number, name in known.places)
        return [_Entries.of(container) for container in _reached(held)]

    def forget_unchanged(self, may_be_kept: Callable[[Any], bool]) -> None:
        """The first run has ended: of those that it has changed, what they held is kept, if it may be."""
        changed = [entries for entries in self._before if not entries.is_as]
        self._changed = [entries for entries in changed if may_be_kept(entries.values)]
        self._before = []

    def put_back(self) -> None:
        """As if the first run had not been."""
        for entries in self._changed:
            entries.put_back()

    def look_again(self, changes: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """The next call looks anew if this one has put a container on an attribute: tables by now, and before."""
        for now, before in changes:
            if any(type(value) in CONTAINERS and before.get(name) is not value for name, value in now.items()):
                _KNOWN.pop(self._block, None)

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Context of a recompute, which begins with `put_back`: at its end all hold what they held before it."""
        before = self._now()
        try:
            yield
        finally:
            for entries in before:
                if not entries.is_as:
                    entries.put_back()


def _places(modules: Sequence[nn.Module]) -> list[Place]:
    return [
        (number, name)
        for number, module in enumerate(modules)
        for name, value in module.__dict__.items()
        if name not in OF_MODULE and type(value) in CONTAINERS
    ]


def _reached(values: Iterator[Any]) -> list[Any]:
    """The containers, and those in them; none of so many or so large ones that they are no state of a block."""
    found: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind not in CONTAINERS or id(value) in found or (len(value) > _most_of(kind)):
            continue
        found[id(value)] = value
        if len(found) > _MOST_CONTAINERS:
            return []
        if len(value) <= _MOST_ENTRIES:
            waiting.extend(value.values() if kind in _DICTS else value)
    return [value for value in found.values() if type(value) is not tuple]


def _most_of(kind: type) -> float:
    """Entries of a container of this class."""
    if kind is list:
        return math.inf
    return _MOST_OF_A_DEQUE if kind is deque else _MOST_ENTRIES

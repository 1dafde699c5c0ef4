"""Containers on attributes of modules that a call changes: records, counters, states by name; and what is in them.

A recompute begins with what the call began with, and leaves its own entries behind as little as `left_attributes` its
attributes: a record has one entry for each forward. So it is of tensors in them, of arrays and of generators, there or
on attributes themselves (`left_values`). Where they stand is for `inventory` to say.
"""

from __future__ import annotations

import enum
import functools
import math
import operator
import weakref
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from momentumnet.recompute.surroundings.generators import AS_IT_IS
from momentumnet.recompute.values.entries import MOST_ENTRIES, Entries, Whole
from momentumnet.recompute.values.left_values import (
    Held,
    HeldTensor,
    InBuffer,
    Kind,
    Look,
    held,
    held_beside_tensors,
    in_buffers,
    kind_of,
    may_be_held,
)
from momentumnet.recompute.values.objects import (
    CONTAINERS,
    contents_of,
    is_container,
    size_of,
    tuple_like,
)

# No more containers than this are looked at, those on attributes first, nor so many tensors in them. Larger dicts and
# sets, and deques, belong to the program around the network.
_MOST_CONTAINERS, _MOST_OF_A_DEQUE = 64, 1 << 16

_NUMBERS = frozenset({int, float, bool, str, type(None)})

Place = tuple[int, str]


# By block, the kinds of tensors in containers, large ones or on a GPU, that it writes to, as far as it has been seen.
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, set[Kind]] = weakref.WeakKeyDictionary()


class _Seen(NamedTuple):
    """Containers, and what they or attributes hold that may be written to."""

    containers: list[Entries | Whole]
    values: list[Held]


class Containers:
    """What a call changes in containers on attributes of its modules; to be made before its first run.

    Args:
        block: which is called.
        modules: those of the block, and it itself.
        places: of attributes that are looked at.
        look: how.
    """

    def __init__(self, block: nn.Module, modules: Sequence[nn.Module], places: Sequence[Place], look: Look) -> None:
        self._block, self._modules = block, modules
        self._before = self._now(places, look)
        self._changed: list[Entries | Whole] = []
        self._written: list[Held] = []
        self._in_buffers: list[InBuffer] = []
        self._tuples: list[Place] = []

    def _now(self, places: Sequence[Place], look: Look) -> _Seen:
        self._places = places
        values = [vars(self._modules[number]).get(name) for number, name in places]
        values = [value for value in values if not _is_fixed(value)]
        return _seen(values, look, _WRITTEN.get(self._block, ())) if values else _Seen([], [])

    def forget_unchanged(self, may_be_kept: Callable[[Any], bool]) -> None:
        """The first run has ended: of those that it has changed, what they held is kept, if it may be."""
        containers, values = self._before
        self._before = _Seen([], [])
        written = [value for value in values if value.is_changed]
        tensors = {id(value.held): value for value in written if isinstance(value, HeldTensor)}
        kinds = {kind_of(value.held) for value in tensors.values() if value.value is None or not value.held.is_cpu}
        if kinds:
            _WRITTEN.setdefault(self._block, set()).update(kinds)
        others = in_buffers(written, self._modules) if written else {}
        self._written = [value for number, value in enumerate(written) if number not in others]
        self._in_buffers = [place for place in others.values() if place is not None]
        changed = [seen for seen in containers if not seen.is_as or (tensors and _holds(seen.values, tensors))]
        self._changed = [seen for seen in changed if may_be_kept(seen.values)]
        if tensors:
            self._tuples = [
                (number, name)
                for number, name in self._places
                if isinstance(value := vars(self._modules[number]).get(name), tuple) and _holds(value, tensors)
            ]

    @property
    def written(self) -> list[tuple[Tensor, Tensor]]:
        """Tensors that the first run has written to, and what they held before."""
        tensors = [value for value in self._written if isinstance(value, HeldTensor)]
        return [(tensor.held, tensor.value) for tensor in tensors if tensor.value is not None]

    def put_back(self, clones: dict[int, Tensor]) -> None:
        """As if the first run had not been.

        Args:
            clones: by the identity of a tensor, the one that stands in its place.
        """
        for value in self._written:
            if not isinstance(value, HeldTensor):
                value.put_back()
        buffers = [(id(place.held), place.stand_in) for place in self._in_buffers]
        clones = {**clones, **{key: tensor for key, tensor in buffers if tensor is not None}}
        replace = functools.partial(_replaced, clones=clones)
        for seen in self._changed:
            seen.put_back(replace)
        for number, name in self._tuples:
            attributes = vars(self._modules[number])
            if name in attributes:
                attributes[name] = replace(attributes[name])

    def left_alone(self, places: Sequence[Place], look: Look) -> AbstractContextManager[None]:
        """Context of a recompute, which begins with `put_back`: at its end all hold what they held before it.

        Args:
            places: of attributes that are looked at by now.
            look: how.
        """
        before = self._now(places, look)
        if self._changed or self._written:
            before = self._with_replaced(before)
        return _left_as(before) if before.containers or before.values else AS_IT_IS

    def _with_replaced(self, now: _Seen) -> _Seen:
        """And what the call has changed, where others stand in its place by now: somebody may have kept it."""
        standing = {id(seen.container) for seen in now.containers} | {id(value.held) for value in now.values}
        containers = [_as_it_is(seen.container) for seen in self._changed if id(seen.container) not in standing]
        written = [value.held for value in self._written if not isinstance(value, HeldTensor)]
        values = [held_beside_tensors(value) for value in written if id(value) not in standing]
        return _Seen([*now.containers, *containers], [*now.values, *(value for value in values if value is not None)])


@contextmanager
def _left_as(before: _Seen) -> Iterator[None]:
    """Context at whose end all hold what they held before."""
    try:
        yield
    finally:
        for seen in before.containers:
            if not seen.is_as:
                seen.put_back(_itself)
        for value in before.values:
            if value.is_changed:
                value.put_back()


def _itself(value: Any) -> Any:
    return value


def _replaced(value: Any, clones: dict[int, Tensor]) -> Any:
    """What stands in the place of a value: a clone of a tensor; a tuple of such ones, if it holds one."""
    if not isinstance(value, tuple):
        return clones.get(id(value), value)
    items = [_replaced(item, clones) for item in value]
    if all(map(operator.is_, items, value)):
        return value
    return tuple_like(value, items)


def _holds(values: Iterable[Any], tensors: Container[int]) -> bool:
    """Whether one of the tensors is among the values, or in tuples there."""
    return any(_holds(value, tensors) if isinstance(value, tuple) else id(value) in tensors for value in values)


class _What(enum.Enum):
    """What an object is to a look at containers."""

    NOTHING = enum.auto()
    CONTAINER = enum.auto()
    VALUE = enum.auto()  # that may be written to


_WHAT: dict[type, _What] = {}


def _what(kind: type) -> _What:
    """What an object of this class is."""
    found = _WHAT.get(kind)
    if found is None:
        is_one = is_container(kind)
        found = _What.CONTAINER if is_one else _What.VALUE if may_be_held(kind) else _What.NOTHING
        _WHAT[kind] = found
    return found


def is_looked_at(kind: type) -> bool:
    """Whether an attribute of this class is looked at; `left_attributes` has tensors that are attributes themselves."""
    return kind is not Tensor and _what(kind) is not _What.NOTHING


def _is_fixed(value: Any) -> bool:
    """Whether it is a tuple of numbers (options of a convolution), which can neither change nor hold what can."""
    return type(value) is tuple and len(value) <= MOST_ENTRIES and _NUMBERS.issuperset(map(type, value))


def _seen(values: Iterable[Any], look: Look, written: Container[Kind]) -> _Seen:
    """The containers among the values, and those in them, the outer ones first; and what else is in them."""
    containers: list[Entries | Whole] = []
    others: list[Held] = []
    known: set[int] = set()
    waiting = deque(values)
    while waiting:
        value = waiting.popleft()
        kind = type(value)
        what = _what(kind)
        if what is _What.NOTHING or id(value) in known:
            continue
        if what is _What.VALUE:
            if len(others) < _MOST_CONTAINERS and (found := held(value, look, written)) is not None:
                known.add(id(value))
                others.append(found)
            continue
        is_usual = kind in CONTAINERS
        size = len(value) if is_usual else size_of(value)
        if not _is_fixed(value) and len(known) - len(others) < _MOST_CONTAINERS and size <= _most_of(kind):
            known.add(id(value))
            seen = _as_it_is(value)
            if kind is not tuple:
                containers.append(seen)
            # A record is mostly one of numbers: their classes alone are looked at.
            if size <= MOST_ENTRIES and not _NUMBERS.issuperset(map(type, seen.values)):
                waiting.extend(seen.values)
    return _Seen(containers, others)


def _as_it_is(container: Any) -> Entries | Whole:
    return Entries.of(container) if type(container) in CONTAINERS else Whole(container, contents_of(container))


def _most_of(kind: type) -> float:
    """Entries of a container of this class."""
    if kind is list:
        return math.inf
    return _MOST_OF_A_DEQUE if kind is deque else MOST_ENTRIES

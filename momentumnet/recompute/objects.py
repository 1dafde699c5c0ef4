"""Objects of Python that hold state: key-value caches, graphs, contexts. Copied with all that they hold, or put back.

A block is handed such an object and writes into it, or reads what another one wrote; so a recompute has to be handed
the object as the first run found it. Copies take no tensor's memory: they hold the same tensors, or aliases of them.
"""

from __future__ import annotations

import copy
import enum
import sys
import types
from collections import OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.reports import is_hollow

_CONTAINERS = (list, dict, set, tuple, deque, OrderedDict, defaultdict)
_STATES_OF_THE_LIBRARY = (types.SimpleNamespace, UserDict, UserList)
_NO_STATES = (Tensor, nn.Module, type, enum.Enum, types.FunctionType, types.MethodType, types.ModuleType)
# Objects of these packages are machinery (loggers, locks, generators, process groups), not a network's state.
_MACHINERY = frozenset({*sys.stdlib_module_names, "torch", "numpy"})
_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype})
# What reaches more objects than this is no state of a network but a part of the program around it.
_LARGEST = 20_000
_SMALL = 4096  # bytes


def has_state(value: Any) -> bool:
    """Whether ``value`` is an object or a container of Python that holds something; tensors and modules are none."""
    return _of_kind(type(value)) is not _Copying.NONE


class _Copying(enum.Enum):
    """How objects of a class are copied: not at all, as the class itself does it, or their attributes alone."""

    NONE = enum.auto()
    ITS_OWN = enum.auto()
    ATTRIBUTES = enum.auto()


_COPYING: dict[type, _Copying] = {}


def _of_kind(kind: type) -> _Copying:
    if kind not in _COPYING:
        _COPYING[kind] = _judged(kind)
    return _COPYING[kind]


def _judged(kind: type) -> _Copying:
    if kind in _CONTAINERS or issubclass(kind, _STATES_OF_THE_LIBRARY):
        return _Copying.ITS_OWN
    if kind in _SIMPLE or issubclass(kind, _NO_STATES) or kind.__module__.partition(".")[0] in _MACHINERY:
        return _Copying.NONE
    slots, container = _slots(kind), issubclass(kind, (list, dict, tuple, deque, set))
    if not (kind.__dictoffset__ or slots or container):
        return _Copying.NONE
    usual = all(getattr(kind, name, None) is getattr(object, name, None) for name in _COPY_PROTOCOL)
    return _Copying.ITS_OWN if slots or container or not usual else _Copying.ATTRIBUTES


_COPY_PROTOCOL = ("__copy__", "__new__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")


class _Contents(NamedTuple):
    """What an object holds itself: its attributes and, where it is a container, its items."""

    attributes: dict[str, Any]
    items: dict[Any, Any] | list[Any] | set[Any] | None

    def values(self) -> Iterator[Any]:
        yield from self.attributes.values()
        if self.items is not None:
            yield from self.items.values() if isinstance(self.items, dict) else self.items

    def replaced(self, replace: Callable[[Any], Any]) -> _Contents:
        """The same with every value replaced; what a set holds stays, for it is found by what it is."""
        items = self.items
        if isinstance(items, dict):
            items = {key: replace(item) for key, item in items.items()}
        elif isinstance(items, list):
            items = [replace(item) for item in items]
        return _Contents({name: replace(value) for name, value in self.attributes.items()}, items)

    def is_same(self, other: _Contents) -> bool:
        """Whether the very same objects stand at the same places."""
        mine, others = list(self.values()), list(other.values())
        return (
            list(self.attributes) == list(other.attributes)
            and len(mine) == len(others)
            and all(a is b for a, b in zip(mine, others, strict=True))
            and (not isinstance(self.items, dict) or all(map(_is, self.items, other.items or ())))
        )


def _is(one: object, other: object) -> bool:
    return one is other


def _contents_of(owner: Any) -> _Contents:
    attributes = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    for name in _slots(type(owner)):
        if hasattr(owner, name):
            attributes[name] = getattr(owner, name)
    if isinstance(owner, dict):
        return _Contents(attributes, dict(_table(owner).items(owner)))
    if isinstance(owner, (list, deque, tuple)):
        return _Contents(attributes, list(owner))
    return _Contents(attributes, set(owner) if isinstance(owner, set) else None)


def _put(owner: Any, contents: _Contents) -> None:
    """Make the object hold this. Past its own methods, which may do more than that."""
    slots = _slots(type(owner))
    if hasattr(owner, "__dict__"):
        vars(owner).clear()
        vars(owner).update({name: value for name, value in contents.attributes.items() if name not in slots})
    for name in slots:
        if name in contents.attributes:
            object.__setattr__(owner, name, contents.attributes[name])
        elif hasattr(owner, name):
            object.__delattr__(owner, name)
    if isinstance(owner, dict):
        table = _table(owner)
        table.clear(owner)
        for key, value in contents.items.items():  # type: ignore[union-attr]
            table.__setitem__(owner, key, value)
    elif isinstance(owner, (list, deque)):
        owner.clear()
        owner.extend(contents.items)  # type: ignore[arg-type]
    elif isinstance(owner, set):
        owner.clear()
        owner.update(contents.items or ())


def _table(owner: dict[Any, Any]) -> type[dict[Any, Any]]:
    """The class whose methods know all of the entries, and do nothing more."""
    return OrderedDict if isinstance(owner, OrderedDict) else dict


def _slots(kind: type) -> list[str]:
    found = []
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                found.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return found


def copied(value: Any, tensor: Callable[[Tensor], Any] = lambda found: found) -> Any:
    """A copy of an object or a container, and of the objects and containers in it; their tensors are not copied.

    Modules, functions and the machinery of Python and torch stay themselves, and so does what refuses to be copied or
    holds more than the state of a network would.

    Args:
        value: what to copy.
        tensor: gives what stands in the copy for a tensor; the tensor itself by default.

    Example:
        >>> cache = {"keys": [torch.ones(2)]}
        >>> again = copied(cache)
        >>> again["keys"] is cache["keys"], again["keys"][0] is cache["keys"][0]
        (False, True)
    """
    try:
        return _Copies(tensor).of(value)
    except (_TooLargeError, RecursionError):
        return value


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor is a counter or the like: objects change those in place, and they cost nothing to clone."""
    return not tensor.requires_grad and tensor.layout is torch.strided and tensor.nbytes <= _SMALL


def with_small_ones_cloned(tensor: Tensor) -> Tensor:
    """What stands for a tensor in a copy that is going to be written to."""
    return tensor.clone() if is_small(tensor) else tensor


class _TooLargeError(Exception):
    """A walk has met more than the state of a network. It ends the walk, and no caller sees it."""


class _Copies:
    """One walk, in which each object is copied once."""

    def __init__(self, tensor: Callable[[Tensor], Any]) -> None:
        self._tensor = tensor
        self._made: dict[int, Any] = {}
        self._originals: list[Any] = []  # an id means something only while its object lives

    def of(self, value: Any) -> Any:
        if type(value) in _SIMPLE:
            return value
        is_tensor = isinstance(value, Tensor)
        copying = _Copying.NONE if is_tensor else _of_kind(type(value))
        if copying is _Copying.NONE and not is_tensor:
            return value
        if id(value) not in self._made:
            if len(self._originals) >= _LARGEST:
                raise _TooLargeError
            self._originals.append(value)
            if is_tensor:
                self._made[id(value)] = self._tensor(value)
            elif copying is _Copying.ATTRIBUTES:
                self._made[id(value)] = self._with_attributes(value)
            else:
                self._made[id(value)] = self._as_its_class_does(value)
        return self._made[id(value)]

    def _with_attributes(self, value: Any) -> Any:
        made = self._made[id(value)] = object.__new__(type(value))  # known before what it holds, which may hold it
        attributes = vars(made)
        for name, item in vars(value).items():
            attributes[name] = self.of(item)
        return made

    def _as_its_class_does(self, value: Any) -> Any:
        if isinstance(value, tuple):
            items = [self.of(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        try:
            made = copy.copy(value)
        except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, copy.Error):
            return value
        if made is not value:
            self._made[id(value)] = self._made[id(made)] = made
            # What the copy holds, not what the original does: its class may have copied parts that know their owner.
            _put(made, _contents_of(made).replaced(self.of))
        return made


class Held:
    """What objects and containers hold, and those in them, to be compared or put back.

    Args:
        values: where to look. What has no state is passed over.
        apart: tensors and objects that are somebody else's affair.

    Attributes:
        tensors: all other tensors that were met.
    """

    def __init__(self, values: Iterable[Any], apart: Iterable[Any] = ()) -> None:
        self._held: list[tuple[Any, _Contents]] = []
        self.tensors: list[Tensor] = []
        seen = set(map(id, apart))
        pending = list(values)
        while pending:
            value = pending.pop()
            is_tensor = isinstance(value, Tensor)
            if id(value) in seen or not (is_tensor or has_state(value)):
                continue
            seen.add(id(value))
            if is_tensor:
                self.tensors.append(value)
                continue
            contents = _contents_of(value)
            self._held.append((value, contents))
            pending.extend(contents.values())

    @property
    def is_unchanged(self) -> bool:
        """Whether everything holds the very objects that it held."""
        return all(contents.is_same(_contents_of(owner)) for owner, contents in self._held)

    def put_back(self) -> None:
        """Everything holds again what it held."""
        for owner, contents in self._held:
            if not contents.is_same(_contents_of(owner)):
                _put(owner, contents)


class Values:
    """The values of tensors, to be put back.

    Args:
        tensors: those whose values can be read are cloned.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept = [
            (tensor, tensor._version, tensor.grad_fn is not None, tensor.detach().clone())
            for tensor in tensors
            if not (tensor.is_inference() or is_hollow(tensor))
        ]

    def put_back(self) -> None:
        """The tensors have their values again, and no history that they did not have."""
        for tensor, version, had_history, values in self._kept:
            if tensor._version == version and torch.equal(tensor.detach(), values):
                continue
            if tensor.grad_fn is not None and not had_history:
                tensor.detach_()
            with torch.no_grad():
                tensor.copy_(values)

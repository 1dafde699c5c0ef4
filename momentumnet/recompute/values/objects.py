"""Objects of Python that hold state: key-value caches, graphs, contexts. What they hold, to be compared or put back."""

from __future__ import annotations

import enum
import sys
import types
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from momentumnet.arithmetic.reports import is_hollow

CONTAINERS = frozenset({list, dict, set, tuple, deque, OrderedDict, defaultdict, Counter})
# What nn.Module keeps on its attributes for itself.
OF_MODULE = frozenset(nn.Module().__dict__)
_STATES_OF_THE_LIBRARY = (types.SimpleNamespace, UserDict, UserList)
_NO_STATES = (Tensor, nn.Module, type, enum.Enum, types.FunctionType, types.MethodType, types.ModuleType)
# Objects of these packages are machinery (loggers, locks, generators, process groups), not a network's state.
_MACHINERY = frozenset({*sys.stdlib_module_names, "torch", "numpy"})
SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype})


def has_state(value: Any) -> bool:
    """Whether ``value`` is an object or a container of Python that holds something; tensors and modules are none."""
    return copying_of(type(value)) is not Copying.NONE


class Copying(enum.Enum):
    """How objects of a class are copied: not at all, as the class itself does it, or their attributes alone."""

    NONE = enum.auto()
    ITS_OWN = enum.auto()
    ATTRIBUTES = enum.auto()


_COPYING: dict[type, Copying] = {}


def copying_of(kind: type) -> Copying:
    """How objects of this class are copied."""
    if kind not in _COPYING:
        _COPYING[kind] = _judged(kind)
    return _COPYING[kind]


def is_container(kind: type) -> bool:
    """Whether it is a class of containers that hold state, maybe of the network's own, or of the library's."""
    if kind in CONTAINERS:
        return True
    holds = issubclass(kind, (list, dict, set, tuple, deque)) or issubclass(kind, _STATES_OF_THE_LIBRARY)
    return holds and copying_of(kind) is not Copying.NONE


def is_array(kind: type) -> bool:
    """Whether it is NumPy's class of arrays, which are written in place and count nothing."""
    return (kind.__module__, kind.__name__) == ("numpy", "ndarray")


def _judged(kind: type) -> Copying:
    if kind in CONTAINERS or is_array(kind) or issubclass(kind, _STATES_OF_THE_LIBRARY):
        return Copying.ITS_OWN
    if kind in SIMPLE or issubclass(kind, _NO_STATES) or kind.__module__.partition(".")[0] in _MACHINERY:
        return Copying.NONE
    slots, container = _slots(kind), issubclass(kind, (list, dict, tuple, deque, set))
    if not (kind.__dictoffset__ or slots or container):
        return Copying.NONE
    usual = all(getattr(kind, name, None) is getattr(object, name, None) for name in _COPY_PROTOCOL)
    return Copying.ITS_OWN if slots or container or not usual else Copying.ATTRIBUTES


_COPY_PROTOCOL = ("__copy__", "__new__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")


class Contents(NamedTuple):
    """What an object holds itself: its attributes and, where it is a container, its items."""

    attributes: dict[str, Any]
    items: dict[Any, Any] | list[Any] | set[Any] | None

    def values(self) -> Iterator[Any]:
        yield from self.attributes.values()
        if self.items is not None:
            yield from self.items.values() if isinstance(self.items, dict) else self.items

    def replaced(self, replace: Callable[[Any], Any]) -> Contents:
        """The same with every value replaced; what a set holds stays, for it is found by what it is."""
        items = self.items
        if isinstance(items, dict):
            items = {key: replace(item) for key, item in items.items()}
        elif isinstance(items, list):
            items = [replace(item) for item in items]
        return Contents({name: replace(value) for name, value in self.attributes.items()}, items)

    def is_same(self, other: Contents) -> bool:
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


def contents_of(owner: Any) -> Contents:
    """What an object or a container holds now. Past its own methods, which may load, count or show something else."""
    attributes = dict(vars(owner)) if hasattr(owner, "__dict__") else {}
    for name in _slots(type(owner)):
        if hasattr(owner, name):
            attributes[name] = getattr(owner, name)
    table = _table(owner)
    if table is None:
        return Contents(attributes, None)
    if isinstance(owner, dict):
        return Contents(attributes, dict(table.items(owner)))
    items = table.__iter__(owner)
    return Contents(attributes, set(items) if isinstance(owner, set) else list(items))


def put(owner: Any, contents: Contents) -> None:
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
    table = _table(owner)
    if table is None or table is tuple:
        return
    table.clear(owner)
    if isinstance(owner, dict):
        for key, value in contents.items.items():  # type: ignore[union-attr]
            table.__setitem__(owner, key, value)
    else:
        (table.update if table is set else table.extend)(owner, contents.items or ())


def size_of(container: Any) -> int:
    """How many items a container holds; one of the library's classes has them in an attribute."""
    table = _table(container)
    return 0 if table is None else int(table.__len__(container))


def tuple_like(value: tuple[Any, ...], items: list[Any]) -> Any:
    """A tuple of the class of ``value`` with these items, whatever that class takes to be made."""
    try:
        made: Any = tuple.__new__(type(value), items)
    except TypeError:  # of a class that is written in C
        return tuple(items)
    if hasattr(made, "__dict__"):
        vars(made).update(vars(value))
    return made


def _table(owner: Any) -> Any:
    """The class whose methods know all of the items, and do nothing more; None of what is no container."""
    return next((table for table in _TABLES if isinstance(owner, table)), None)


_TABLES = (OrderedDict, dict, list, tuple, deque, set)


def repeats(tensor: Tensor) -> bool:
    """Whether it is expanded: written to where its elements lie, not itself."""
    return tensor.layout == torch.strided and torch._debug_has_internal_overlap(tensor) == 1


def _slots(kind: type) -> list[str]:
    found = []
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                found.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return found


def parts(
    values: Iterable[Any], apart: Iterable[Any] = (), enters: Callable[[Any], bool] = has_state
) -> Iterator[tuple[Any, Contents | None]]:
    """All that values hold, each once: a tensor, or an object or container with its contents.

    Args:
        values: where to look.
        apart: tensors and objects that are somebody else's affair.
        enters: which objects and containers are looked into; the others are passed over.
    """
    seen = set(map(id, apart))
    pending = list(values)
    while pending:
        value = pending.pop()
        is_tensor = isinstance(value, Tensor)
        if id(value) in seen or not (is_tensor or enters(value)):
            continue
        seen.add(id(value))
        contents = None if is_tensor else contents_of(value)
        yield value, contents
        if contents is not None:
            pending.extend(contents.values())


class Held:
    """What objects and containers hold, and those in them, to be compared or put back.

    Args:
        values: where to look. What has no state is passed over.
        apart: tensors and objects that are somebody else's affair.

    Attributes:
        tensors: all other tensors that were met.
    """

    def __init__(self, values: Iterable[Any], apart: Iterable[Any] = ()) -> None:
        self._held: list[tuple[Any, Contents]] = []
        self.tensors: list[Tensor] = []
        for value, contents in parts(values, apart):
            if contents is None:
                self.tensors.append(value)
            else:
                self._held.append((value, contents))

    @property
    def is_unchanged(self) -> bool:
        """Whether everything holds the very objects that it held."""
        return all(contents.is_same(contents_of(owner)) for owner, contents in self._held)

    def put_back(self) -> None:
        """Everything holds again what it held."""
        for owner, contents in self._held:
            if not contents.is_same(contents_of(owner)):
                put(owner, contents)


class Values:
    """The values of tensors, to be put back.

    In-place counters are set back with them: graphs of before, whose backward is still to come, hold what they held.

    Args:
        tensors: those whose values can be read are cloned.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        with _disable_current_modes():  # under which a copy would be a fake one
            self._kept = [
                (tensor, tensor._version, tensor.grad_fn is not None, tensor.detach().clone())
                for tensor in tensors
                if not (tensor.is_inference() or is_hollow(tensor))
            ]

    @_disable_current_modes()
    def put_back(self) -> None:
        """The tensors have their values again, and no history that they did not have."""
        for tensor, version, had_history, values in self._kept:
            # Sparse tensors have nothing that compares them, and nobody writes to them past the counter.
            sparse = tensor.layout != torch.strided
            if tensor._version == version and (sparse or torch.equal(tensor.detach(), values)):
                continue
            if tensor.grad_fn is not None and not had_history:
                tensor.detach_()
            with torch.no_grad():
                if tensor.shape != values.shape:  # a buffer that takes its size from the first call
                    tensor.resize_(values.shape)
                if not repeats(tensor):
                    tensor.copy_(values)
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))

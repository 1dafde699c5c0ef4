"""Arguments that are objects of a program's own (a cache, a graph of a graph network), held without what they hold.

Such an object is given to the recompute as it is, and may change in between: whether a call changed it is noticed, to
name it where a recompute fails. And it may come to hold what a later block returned. As the call that holds it belongs
to the graph of that tensor, the two would keep each other alive, out of reach of the garbage collector, if backward
never runs. So an object that holds tensors with a history is let go: it is remembered weakly, beside a copy of it
without histories, for the recompute that finds it gone.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

# An instance of a class that is written in Python from the ground up (flag of CPython's types).
_HEAP_TYPE = 1 << 9
# Parts that are looked at, of one object: to notice a change, and to find histories.
_FEW, _MANY = 200, 20_000


def is_object(leaf: Any) -> bool:
    """Whether an argument is an object with attributes, no tensor, module, type or function."""
    if isinstance(leaf, (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)):
        return False
    return isinstance(getattr(leaf, "__dict__", None), dict)


def signature(value: Any) -> list[object]:
    """Changes whenever the object gets other parts, or a tensor in it is changed in place."""
    found: list[object] = []
    for part in _parts(value, _FEW):
        if isinstance(part, Tensor):
            found.append((id(part), -1 if part.is_inference() else part._version))
        elif isinstance(part, (bool, int, float, str, type(None))):
            found.append(part)
        else:
            found.append((id(part), len(part) if isinstance(part, (dict, list, tuple, set)) else 0))
    return found


def has_history(value: Any) -> bool:
    """Whether a tensor in the object hangs on an autograd graph."""
    return any(isinstance(part, Tensor) and part.grad_fn is not None for part in _parts(value, _MANY))


class LetGo:
    """Stands in kept arguments for an object that holds a graph.

    Args:
        value: the object; one that can be referred to weakly.
    """

    def __init__(self, value: Any) -> None:
        self._original = weakref.ref(value)
        self._copy = _without_history(value, {})

    def get(self) -> Any:
        """The object itself as long as somebody else holds it, then a copy of what it was when it was let go."""
        original = self._original()
        return self._copy if original is None else original


def can_be_let_go(value: Any) -> bool:
    """Whether the object can be copied attribute by attribute, and be referred to weakly."""
    return _is_plain(value) and type(value).__weakrefoffset__ != 0


def _is_plain(value: Any) -> bool:
    kinds = type(value).__mro__[:-1]
    slots = any(set(_names(kind.__dict__.get("__slots__", ()))) - {"__dict__", "__weakref__"} for kind in kinds)
    return is_object(value) and not slots and all(kind.__flags__ & _HEAP_TYPE for kind in kinds)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from tuple(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from tuple(value)
    if is_object(value):
        yield from tuple(vars(value).values())


def _parts(value: Any, most: int) -> Iterator[Any]:
    """The object and all that it holds, each once."""
    pending: list[Any] = [value]
    seen: set[int] = set()
    while pending and len(seen) < most:
        part = pending.pop()
        if isinstance(part, (bool, int, float, str, type(None))):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            yield part
            pending += reversed(list(_children(part)))


def _without_history(value: Any, done: dict[int, Any]) -> Any:
    """A copy whose tensors have no history; what cannot be copied is the same."""
    if id(value) in done:
        return done[id(value)]
    copied: Any = value
    if isinstance(value, Tensor):
        copied = value.detach().requires_grad_() if value.grad_fn is not None else value
    elif type(value) is list:
        copied = done[id(value)] = []
        copied += [_without_history(part, done) for part in value]
    elif type(value) is dict:
        copied = done[id(value)] = {}
        copied |= {key: _without_history(part, done) for key, part in value.items()}
    elif type(value) in (tuple, set, frozenset):
        kind: Any = type(value)
        copied = kind(_without_history(part, done) for part in value)
    elif _is_plain(value):
        copied = done[id(value)] = object.__new__(type(value))
        copied.__dict__.update({key: _without_history(part, done) for key, part in vars(value).items()})
    done[id(value)] = copied
    return copied

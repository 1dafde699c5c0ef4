"""Argument objects that the recompute is given as they are: whether a call changed them, to name them where it fails.

These are the ones that no copy can be made of; of others the recompute gets one (`recompute.objects`).
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

# Parts of one object that are looked at.
_MOST = 200


def is_object(leaf: Any) -> bool:
    """Whether an argument is an object with attributes, no tensor, module, type or function."""
    if isinstance(leaf, (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)):
        return False
    return isinstance(getattr(leaf, "__dict__", None), dict)


def signature(value: Any) -> list[object]:
    """Changes whenever the object gets other parts, or a tensor in it is changed in place."""
    found: list[object] = []
    for part in _parts(value):
        if isinstance(part, Tensor):
            found.append((id(part), -1 if part.is_inference() else part._version))
        elif isinstance(part, (bool, int, float, str, type(None))):
            found.append(part)
        else:
            found.append((id(part), len(part) if isinstance(part, (dict, list, tuple, set)) else 0))
    return found


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from tuple(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from tuple(value)
    if is_object(value):
        yield from tuple(vars(value).values())


def _parts(value: Any) -> Iterator[Any]:
    """The object and all that it holds, each once."""
    pending: list[Any] = [value]
    seen: set[int] = set()
    while pending and len(seen) < _MOST:
        part = pending.pop()
        if isinstance(part, (bool, int, float, str, type(None))):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            yield part
            pending += reversed(list(_children(part)))

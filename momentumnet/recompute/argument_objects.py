"""Argument objects that the recompute is given as they are: whether a call changed them, to name them where it fails.

These are the ones that no copy can be made of; of others the recompute gets one (`recompute.object_copies`).
"""

from __future__ import annotations

import itertools
import types
from typing import Any

from torch import Tensor, nn

from momentumnet.recompute.objects import parts

# Parts of one object that are looked at.
_MOST = 200
_PLAIN = (bool, int, float, str, type(None))


def is_object(leaf: Any) -> bool:
    """Whether an argument is an object with attributes, no tensor, module, type or function."""
    if isinstance(leaf, (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)):
        return False
    return isinstance(getattr(leaf, "__dict__", None), dict)


def signature(value: Any) -> list[object]:
    """Changes whenever the object gets other parts, or a tensor in it is changed in place."""
    found: list[object] = []
    for part, contents in itertools.islice(parts([value], enters=_is_looked_into), _MOST):
        if contents is None:
            found.append((id(part), -1 if part.is_inference() else part._version))
        else:
            found.append([inner if isinstance(inner, _PLAIN) else id(inner) for inner in contents.values()])
    return found


def _is_looked_into(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, set)) or is_object(value)

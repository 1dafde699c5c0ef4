"""Argument objects that the recompute is given as they are: whether a call changed them, to name them where it fails.

These are the ones that no copy can be made of; of others the recompute gets one (`recompute.values.object_copies`).
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.recompute.values.objects import parts

# Parts of one object that are looked at.
_MOST = 200
_PLAIN = (bool, int, float, str, type(None))


class UncopiedObjects:
    """The objects among the arguments of one call that its recompute is given as they are.

    Args:
        named: the arguments, by position or keyword.
        copies: the objects among them of which there is a copy, by identity.

    Attributes:
        changed: position or keyword, and type, of each that the first run has changed.
    """

    def __init__(self, named: Mapping[int | str, Any], copies: Collection[int]) -> None:
        found = [(key, leaf) for key, value in named.items() for leaf in pytree.tree_leaves(value) if is_object(leaf)]
        # With what they look like before the call.
        self._objects = [(key, leaf, signature(leaf)) for key, leaf in found if id(leaf) not in copies]
        self.changed: list[tuple[int | str, str]] = []

    def notice_changes(self) -> None:
        """The first run is over."""
        if self._objects:
            changed = [(key, leaf) for key, leaf, before in self._objects if signature(leaf) != before]
            self.changed = [(key, type(leaf).__name__) for key, leaf in changed]

    def let_go(self) -> None:
        """Hold none of them any more, as no run will be asked about."""
        self._objects = []

    @property
    def given(self) -> list[Any]:
        """They themselves, until they are let go."""
        return [leaf for _, leaf, _ in self._objects]

    @property
    def are_unchanged(self) -> bool:
        """Whether they are still what the first run was given."""
        return all(signature(leaf) == before for _, leaf, before in self._objects)


NO_OBJECTS = UncopiedObjects({}, ())


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

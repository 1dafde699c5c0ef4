"""Buffers that a block reads or moves as no counter tells: running statistics that its own code reads, and moves.

A norm in training does not read its running statistics, and to keep those of every norm before every call would cost
all networks what few need. So the first call of a block is watched, and later calls keep what that has shown.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from momentumnet.recompute.surroundings.stand_in import StandIn

Place = tuple[int, str]  # a module's id, and a buffer's name

_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})


class Learned:
    """What the calls of a block have shown.

    Attributes:
        places: buffers whose values before a call its recompute has to be given. (Where a module has gone and another
            one lies in its place, one copy too many is kept.)
    """

    def __init__(self) -> None:
        self.places: set[Place] = set()
        self._is_new = True
        self._watched: dict[int, weakref.ref[nn.Module]] = {}

    def knows(self, norms: Iterable[nn.Module]) -> bool:
        """Whether a call has been watched in which all of these moved their statistics."""
        watched = self._watched
        return not self._is_new and all(id(norm) in watched and watched[id(norm)]() is norm for norm in norms)

    def have_watched(self, norms: Iterable[nn.Module]) -> None:
        """Such a call is over."""
        self._is_new = False
        self._watched.update((id(norm), weakref.ref(norm)) for norm in norms)


_LEARNED: weakref.WeakKeyDictionary[nn.Module, Learned] = weakref.WeakKeyDictionary()


def learned_of(block: nn.Module) -> Learned:
    """What is known of a block; nothing at first."""
    found = _LEARNED.get(block)
    if found is None:
        found = _LEARNED.setdefault(block, Learned())
    return found


class _Watches(threading.local):
    """Of each thread the watches under way: the ids of norms, and the places that have been read."""

    def __init__(self) -> None:
        self.stack: list[tuple[set[int], set[Place]]] = []


_WATCHES = _Watches()


@contextmanager
def reads_noted(norms: Iterable[nn.Module], found: set[Place]) -> Iterator[None]:
    """Inside, ``found`` receives the statistics that somebody else reads than the forward of a norm in training.

    Modules are asked for buffers by ``__getattr__``, which nothing of PyTorch looks at while a block runs. A function
    mode would see more, and have functions that are compiled in the block compiled once more for its recompute.

    Args:
        norms: the norms.
        found: gets the places that are read.
    """
    depth = len(_WATCHES.stack)
    try:
        _WATCHES.stack.append(({id(norm) for norm in norms}, found))
        with _GETATTR.standing():
            yield
    finally:
        del _WATCHES.stack[depth:]


def _noting(module: nn.Module, name: str) -> Any:
    if name in _NAMES:
        for norms, found in _WATCHES.stack:
            if id(module) in norms and not (module.training and _is_by_a_norm(sys._getframe(1).f_globals)):
                found.add((id(module), name))
    return _GETATTR.original(module, name)


_GETATTR = StandIn(nn.Module, "__getattr__", _noting)


def _is_by_a_norm(names: dict[str, Any]) -> bool:
    """Whether code of torch's layers asks, for itself: `get_buffer` does for somebody else."""
    asking = str(names.get("__name__"))
    return asking.startswith("torch.nn.modules.") and asking != nn.Module.__module__

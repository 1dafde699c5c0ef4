"""Buffers that a block reads or moves as no counter tells: running statistics that its own code reads, and moves.

A norm in training does not read its running statistics, and to keep those of every norm before every call would cost
all networks what few need. So the first call of a block is watched, and later calls keep what that has shown.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Place = tuple[int, str]  # the number of a module in its block, and a buffer's name

_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})


class Learned:
    """What the calls of a block have shown.

    Attributes:
        places: buffers whose values before a call its recompute has to be given.
        moving: how many norms in training have been watched; -1 before the first call.
    """

    def __init__(self) -> None:
        self.places: set[Place] = set()
        self.moving = -1


_LEARNED: weakref.WeakKeyDictionary[nn.Module, Learned] = weakref.WeakKeyDictionary()


def learned_of(block: nn.Module) -> Learned:
    """What is known of a block; nothing at first."""
    found = _LEARNED.get(block)
    if found is None:
        found = _LEARNED.setdefault(block, Learned())
    return found


class _Watches(threading.local):
    """Of each thread the watches under way: the norms by id, and the places that have been read."""

    def __init__(self) -> None:
        self.stack: list[tuple[dict[int, int], set[Place]]] = []


_WATCHES = _Watches()
_LOCK = threading.Lock()
_ORIGINAL = nn.Module.__getattr__
_under_way = 0


@contextmanager
def reads_noted(norms: Sequence[tuple[int, nn.Module]], found: set[Place]) -> Iterator[None]:
    """Inside, ``found`` receives the statistics that somebody else reads than the forward of a norm in training.

    Modules are asked for buffers by ``__getattr__``, which nothing of PyTorch looks at while a block runs. A function
    mode would see more, and have functions that are compiled in the block compiled once more for its recompute.

    Args:
        norms: the norms, by their number in the block.
        found: gets the number and the name of what is read.
    """
    _WATCHES.stack.append(({id(norm): number for number, norm in norms}, found))
    _count(1)
    try:
        yield
    finally:
        _count(-1)
        _WATCHES.stack.pop()


def _count(change: int) -> None:
    """``nn.Module`` has a ``__getattr__`` that notes as long as any thread wants it."""
    global _under_way, _ORIGINAL
    with _LOCK:
        if not _under_way:
            _ORIGINAL = nn.Module.__getattr__
            nn.Module.__getattr__ = _noting  # type: ignore[method-assign]
        _under_way += change
        if not _under_way and nn.Module.__getattr__ is _noting:
            nn.Module.__getattr__ = _ORIGINAL  # type: ignore[method-assign]


def _noting(module: nn.Module, name: str) -> Any:
    if name in _NAMES:
        for norms, found in _WATCHES.stack:
            number = norms.get(id(module))
            if number is not None and not (module.training and _is_by_torch(sys._getframe(1).f_globals)):
                found.add((number, name))
    return _ORIGINAL(module, name)


def _is_by_torch(names: dict[str, Any]) -> bool:
    return str(names.get("__name__")).startswith("torch.nn.modules.")

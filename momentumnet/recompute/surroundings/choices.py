"""Choices that a call makes from what changes from pass to pass: recorded in forward, given back in a recompute.

The scale of a stream that lies inside a block is one: the first pass may widen it, and the recompute has to start from
the scale that the forward started from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Choice = TypeVar("Choice")


class _Calls(threading.local):
    """The calls under way in this thread: a list records their choices, an iterator gives them back."""

    def __init__(self) -> None:
        self.stack: list[list[object] | Iterator[object]] = []


_CALLS = _Calls()


@contextmanager
def _under(call: list[object] | Iterator[object]) -> Iterator[None]:
    depth = len(_CALLS.stack)
    try:
        _CALLS.stack.append(call)
        yield
    finally:
        del _CALLS.stack[depth:]


class Choices:
    """The choices of one block call."""

    def __init__(self) -> None:
        self._made: list[object] = []

    @property
    def any_made(self) -> bool:
        """Whether a choice was made in the call."""
        return bool(self._made)

    def recorded(self) -> AbstractContextManager[None]:
        """Context of the forward."""
        return _under(self._made)

    def replayed(self) -> AbstractContextManager[None]:
        """Context of a recompute."""
        return _under(iter(self._made))


def chosen(choose: Callable[[], Choice]) -> Choice:
    """``choose()``, or what it gave in forward where a block is being called again."""
    recorders = []
    for call in reversed(_CALLS.stack):
        if not isinstance(call, list):
            value = next(call, _NOTHING)  # none left: the block took another path, which its checks will find
            break
        recorders.append(call)
    else:
        value = _NOTHING
    result = choose() if value is _NOTHING else value
    for recorder in recorders:
        recorder.append(result)
    return result  # type: ignore[return-value]


_NOTHING = object()


def recomputing() -> bool:
    """Whether a block is being called again in this thread."""
    return any(not isinstance(call, list) for call in _CALLS.stack)

"""What is known of a tensor, by its identity: for whom it is handed to does not know where it comes from."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

Known = TypeVar("Known")


class ByTensor(Generic[Known]):
    """Values by the identity of a tensor; an entry ends with its tensor, and is not copied or pickled."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Known]] = {}

    def put(self, x: Tensor, known: Known) -> None:
        """Remember what is known of the tensor ``x``."""
        key, entries = id(x), self._entries
        entries[key] = (weakref.ref(x, lambda _: entries.pop(key, None)), known)

    def get(self, x: Tensor) -> Known | None:
        """What is known of ``x``."""
        entry = self._entries.get(id(x))
        return None if entry is None or entry[0]() is not x else entry[1]

    def take(self, x: Tensor) -> Known | None:
        """The same, once: who asks again finds nothing."""
        known = self.get(x)
        if known is not None:
            del self._entries[id(x)]
        return known

    def __reduce__(self) -> tuple[Any, ...]:
        return ByTensor, ()

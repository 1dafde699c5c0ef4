"""Functions of PyTorch's that another one stands in for, while any thread wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StandIn:
    """A function in the place of one of PyTorch's, which it calls as `original`.

    Args:
        owner: the class or module that has it.
        name: under which it has it.
        function: what stands in for it. All threads come by, so it has to tell those that want it from the others.
    """

    def __init__(self, owner: object, name: str, function: Callable[..., Any]) -> None:
        self._owner, self._name, self._function = owner, name, function
        self.original: Callable[..., Any] = getattr(owner, name)
        self._lock = threading.Lock()
        self._users: set[object] = set()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Inside, it stands there."""
        user = object()
        try:
            self._begin(user)
            yield
        finally:
            self._end(user)

    def _begin(self, user: object) -> None:
        with self._lock:
            # Another one who had put a function of his own there in the meantime may have put this one back.
            if not self._users and not self._is_there:
                self.original = getattr(self._owner, self._name)
                setattr(self._owner, self._name, self._function)
            self._users.add(user)

    def _end(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users and self._is_there:
                setattr(self._owner, self._name, self.original)

    @property
    def _is_there(self) -> bool:
        return getattr(self._owner, self._name) is self._function

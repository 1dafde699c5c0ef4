"""Python's full garbage collections, put off while a step is planned."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# So many collections of the middle generation are never made between two full ones.
_NEVER = 1 << 30
_lock = threading.Lock()
_users = 0
_thresholds = (0, 0, 0)


@contextmanager
def full_collections_put_off() -> Iterator[None]:
    """Inside, and also used as a decorator, garbage is collected that is young; all other objects are not walked over.

    Traces and options are so many objects that Python walks over all there are, two or three times in a plan: as long
    as several steps of a network of small blocks, in a process that has imported much. Cycles that a forward drops
    soon are young. Those of the model's own that live as long as a whole pass wait for the end of the plan, with the
    activations that they hold: those of each of its passes, where they were those of a few.
    """
    global _users, _thresholds
    with _lock:
        if not _users:
            _thresholds = gc.get_threshold()
            gc.set_threshold(*_thresholds[:2], _NEVER)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                gc.set_threshold(*_thresholds)

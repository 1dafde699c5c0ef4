"""Attributes of modules in which a call leaves what it has computed, such as an auxiliary loss.

A recompute leaves its own there, whose graph nobody goes through: it would live until the next forward, with all that
the recompute has saved. What the forward has left is put back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

# By block, where its calls leave tensors of a graph: looked for when it is first recomputed.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, list[tuple[int, str]]] = weakref.WeakKeyDictionary()


def left_by_a_call(module: nn.Module) -> list[str]:
    """The module's own attributes that hold a tensor with a history."""
    return [name for name, value in vars(module).items() if isinstance(value, Tensor) and value.grad_fn is not None]


@contextmanager
def kept_as_they_are(block: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """At the end, the attributes hold what they held at the beginning.

    Args:
        block: that is recomputed inside.
        modules: it, and all in it.
    """
    known = _KNOWN.get(block)
    if known is None:
        known = [(place, name) for place, module in enumerate(modules) for name in left_by_a_call(module)]
        _KNOWN[block] = known
    places = [(vars(modules[place]), name) for place, name in known if place < len(modules)]
    before = [(attributes, name, attributes[name]) for attributes, name in places if name in attributes]
    try:
        yield
    finally:
        for attributes, name, value in before:
            attributes[name] = value

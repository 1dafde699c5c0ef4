"""The tensors that a call is given, found again by the memory that they lie in.

A parameter, a buffer or an argument that autograd saves needs no look at its values: in-place counters watch over them
(`recompute.replay`). That it is the same one in the recompute is a matter of names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where a tensor lies: in which given one, and how many elements behind its start."""

    name: str
    offset: int


class Origins:
    """The given tensors of one run.

    Args:
        given: names and tensors; of those that share memory the first one counts.
    """

    def __init__(self, given: Iterable[tuple[str, Tensor]]) -> None:
        # The storage is held, so that nobody else gets its address while this lives.
        self._strided: dict[int, tuple[str, int, Any]] = {}
        self._others: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in given:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self._strided.setdefault(storage._cdata, (name, int(tensor.storage_offset()), storage))
            else:
                self._others.setdefault(id(tensor), (name, tensor))

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where the tensor lies; None if it was not given."""
        if tensor.layout != torch.strided:
            found = self._others.get(id(tensor))
            return None if found is None else Place(found[0], 0)
        place = self._strided.get(tensor.untyped_storage()._cdata)
        return None if place is None else Place(place[0], int(tensor.storage_offset()) - place[1])

"""The tensors that a call is given, found again by the memory that they lie in.

A parameter, a buffer or an argument that autograd saves needs no look at its values: in-place counters watch over them
(`recompute.replay`). That it is the same one in the recompute is a matter of names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


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
        # The tensors are held, so that nobody else gets their addresses while this lives.
        self._given = list(given)
        self._starts: dict[int, str] = {}
        for name, tensor in self._given:
            if type(tensor) in _PLAIN and tensor.layout == torch.strided:
                self._starts.setdefault(tensor.data_ptr(), name)
        self._strided: dict[int, tuple[str, int, Any]] | None = None
        self._others: dict[int, str] = {}

    def starting_at(self, tensor: Tensor) -> Place | None:
        """Where the tensor lies, if it begins where a given one begins; that is found with little on the host."""
        if type(tensor) not in _PLAIN or tensor.layout != torch.strided:
            return self.place_of(tensor)
        name = self._starts.get(tensor.data_ptr())
        return None if name is None else Place(name, 0)

    def _look_closer(self) -> dict[int, tuple[str, int, Any]]:
        """The given tensors by their storages."""
        found: dict[int, tuple[str, int, Any]] = {}
        for name, tensor in self._given:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                found.setdefault(storage._cdata, (name, int(tensor.storage_offset()), storage))
            else:
                self._others.setdefault(id(tensor), name)
        return found

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where the tensor lies; None if it was not given."""
        if self._strided is None:
            self._strided = self._look_closer()
        if tensor.layout != torch.strided:
            found = self._others.get(id(tensor))
            return None if found is None else Place(found, 0)
        place = self._strided.get(tensor.untyped_storage()._cdata)
        return None if place is None else Place(place[0], int(tensor.storage_offset()) - place[1])

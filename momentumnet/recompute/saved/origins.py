"""The tensors that a call is given, found again by the memory that they lie in.

A parameter, a buffer or an argument that autograd saves needs no look at its values: in-place counters watch over them
(`recompute.replay`). That it is the same one in the recompute is a matter of names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_STRIDED = torch.strided
_PLAIN = frozenset({Tensor, nn.Parameter})

# A tensor that a call is given, behind the kind, number and name of its `Place`.
Given = tuple[str, int, str, Tensor]


class Place(NamedTuple):
    """Where a tensor lies: in which given one, and how many elements behind its start.

    Attributes:
        kind: of the given one: "input", "argument", "parameter" or "buffer".
        number: of the argument, or of the module that has it.
        name: of a parameter or a buffer in its module.
        offset: elements.
    """

    kind: str
    number: int = 0
    name: str = ""
    offset: int = 0

    def told(self) -> str:
        """The place for a message."""
        if self.kind == "input":
            given = "its input"
        elif self.kind == "argument":
            given = f"tensor argument {self.number}"
        else:
            given = f"{self.kind} {self.name!r} of its module {self.number}"
        return f"{given} from its element {self.offset} on"


class Origins:
    """The given tensors of one run.

    Args:
        given: their places and they themselves; of those that share memory the first one counts.
    """

    def __init__(self, given: Iterable[Given]) -> None:
        # While the block runs another module's code by vmap over parameters, tensors that have no memory stand there.
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        self._given = found = [one for one in given if not wrapped(one[3])]
        self._starts: dict[int, Given] = {
            one[3].data_ptr(): one for one in reversed(found) if type(one[3]) in _PLAIN and one[3].layout is _STRIDED
        }
        self._strided: dict[int, tuple[Place, int, Any]] | None = None
        self._others: dict[int, Place] = {}

    def starting_at(self, tensor: Tensor) -> Place | None:
        """Where the tensor lies, if it begins where a given one begins; that is found with little on the host."""
        if type(tensor) not in _PLAIN or tensor.layout is not _STRIDED:
            return self.place_of(tensor)
        found = self._starts.get(tensor.data_ptr())
        if found is None:
            return None
        start = found[3]
        # FSDP lets go of a parameter's memory when its module has run: the address may be another tensor's by now.
        is_same = start is tensor or start.untyped_storage()._cdata == tensor.untyped_storage()._cdata
        return Place(*found[:3]) if is_same else None

    def _look_closer(self) -> dict[int, tuple[Place, int, Any]]:
        """The given tensors by their storages."""
        found: dict[int, tuple[Place, int, Any]] = {}
        for kind, number, name, tensor in self._given:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                found.setdefault(storage._cdata, (Place(kind, number, name), int(tensor.storage_offset()), storage))
            else:
                self._others.setdefault(id(tensor), Place(kind, number, name))
        return found

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where the tensor lies; None if it was not given.

        Given tensors may share one storage (two rows of indices): one that begins where the tensor does comes first.
        """
        if type(tensor) in _PLAIN and tensor.layout is _STRIDED and (place := self.starting_at(tensor)) is not None:
            return place
        if self._strided is None:
            self._strided = self._look_closer()
        if tensor.layout != torch.strided:
            return self._others.get(id(tensor))
        found = self._strided.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[0]._replace(offset=int(tensor.storage_offset()) - found[1])

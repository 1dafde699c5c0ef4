"""A module's saved tensors in host memory: they leave while the forward goes on, and come back ahead of backward.

PyTorch's saved-tensor hooks do the work. Each storage is copied once, however many saved tensors are views of it. Its
memory on the device is let go when the unit behind has run (`settle`), so that the copy goes on beside that one, and
comes back when the backward of that one begins (`OffloadedTensors.fetch`). Both are decided in the order of the calls
and not by what the device has done so far: the bytes on the device are the same in every step.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.saved.host_copies import Copy, HostCopies, copies_of
from momentumnet.recompute.surroundings.uncompiled import uncompiled
from momentumnet.recompute.values.counters import version

# Smaller storages stay: to ask for a copy takes some ten microseconds, in which a link of 25 GB/s moves 256 KiB.
SMALLEST = 1 << 20


class Parked:
    """The bytes of one storage: leaving its device, in host memory alone, or back.

    Args:
        copies: of its device.
        storage: the storage.
    """

    def __init__(self, copies: HostCopies, storage: torch.UntypedStorage) -> None:
        self._copies, self._count = copies, storage.nbytes()
        self._origin = StorageWeakRef(storage)
        self._bytes: Tensor | None = _bytes_of(storage, copies.device)
        self._copy: Copy | None
        self._host, self._copy = copies.send(self._bytes)
        self._is_away = False

    def settle(self) -> None:
        """Let go of the device's memory, behind the copy."""
        if not self._is_away and self._copy is not None:
            self._copy.wait()
            self._bytes = self._copy = None
            self._is_away = True

    def fetch(self) -> None:
        """Begin the way back, unless the bytes are on the device: others may have held the storage all the time."""
        if self._bytes is not None:
            return
        storage = torch.UntypedStorage._new_with_weak_ptr(self._origin.cdata)
        if storage is not None and storage.nbytes() == self._count:
            self._bytes = _bytes_of(storage, self._copies.device)
        else:
            self._bytes, self._copy = self._copies.fetch(self._host, self._count)

    def storage(self) -> torch.UntypedStorage:
        """The storage on the device, for what is computed from now on."""
        self.fetch()
        if self._is_away and self._copy is not None:
            # Each time: the one who asks may compute on another stream than the one before.
            self._copy.wait()
            self._copies.used(self._bytes)  # type: ignore[arg-type]
        return self._bytes.untyped_storage()  # type: ignore[union-attr]

    def __del__(self) -> None:
        if getattr(self, "_host", None) is None:  # the copy was never begun
            return
        if self._copy is not None and self._bytes is not None:
            self._copies.let_go(self._host, self._bytes, self._copy)
        else:
            self._copies.give_back(self._host)


class _Kept:
    """A saved tensor that stays."""

    __slots__ = ("_counter", "_name", "_tensor")

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor, self._counter = name, tensor.detach(), version(tensor)

    def open(self) -> Tensor:
        _check(self._name, self._tensor, self._counter, self._tensor.shape)
        return self._tensor


class _Moved:
    """A saved tensor whose storage is moved: how it lies in there, and its in-place counter."""

    __slots__ = ("_counter", "_name", "_parked", "_place", "_twin")

    def __init__(self, name: str, tensor: Tensor, parked: Parked) -> None:
        self._name, self._parked, self._counter = name, parked, version(tensor)
        self._place = tensor.storage_offset(), tensor.size(), tensor.stride()
        # Shares the counter and holds none of the memory: its data are others, as only `data` lets them be.
        self._twin = tensor.detach()
        self._twin.data = tensor.new_empty(0)

    def open(self) -> Tensor:
        _check(self._name, self._twin, self._counter, self._place[1])
        storage = self._parked.storage()
        return self._twin.new_empty(0).set_(storage, *self._place)


class OffloadedTensors:
    """The saved tensors of one call.

    Args:
        name: the module's name, for errors.
        owner: of calls whose tensors are let go together: of one unit.
        staying: tensors whose storages stay, as others hold them anyway: parameters, buffers.
    """

    def __init__(self, name: str, owner: object, staying: Iterable[Tensor]) -> None:
        self.name, self.owner = name, owner
        self._staying = {_key(tensor) for tensor in staying if tensor.layout is torch.strided}
        self._parked: list[weakref.ref[Parked]] = []

    def moving(self) -> saved_tensors_hooks:
        """Context of the call: what it saves begins to leave."""
        return saved_tensors_hooks(self._pack, _open)

    @uncompiled
    def _pack(self, tensor: Tensor) -> _Kept | _Moved:
        copies = copies_of(tensor.device)
        if copies is None or not copies.takes(tensor):
            return _Kept(self.name, tensor)
        storage = tensor.untyped_storage()
        if storage.nbytes() < SMALLEST or _key(tensor) in self._staying:
            return _Kept(self.name, tensor)
        key = StorageWeakRef(storage), version(tensor)
        parked = copies.away.get(key)
        if parked is None:
            copies.away[key] = parked = Parked(copies, storage)
        self._parked.append(weakref.ref(parked))
        return _Moved(self.name, tensor, parked)

    def settle(self) -> None:
        """Let go of the device's memory; copies that nobody needs any more are gone with it."""
        for parked in self._alive(reversed(self._parked)):  # who has waited for the last copy need not for the others
            parked.settle()

    def fetch(self) -> None:
        """Begin the way back, of what backward needs first in front."""
        for parked in self._alive(reversed(self._parked)):
            parked.fetch()

    def _alive(self, parked: Iterable[weakref.ref[Parked]]) -> Iterable[Parked]:
        return (found for found in (reference() for reference in parked) if found is not None)


class _Open(threading.local):
    """The calls in this thread whose tensors are still on their device."""

    def __init__(self) -> None:
        self.calls: list[OffloadedTensors] = []


_OPEN = _Open()


def leave_open(call: OffloadedTensors) -> None:
    """The call has ended; the device holds its tensors until `settle`."""
    _OPEN.calls.append(call)


def settle(but_of: object = None, *, only_of: object = None) -> list[OffloadedTensors]:
    """Let go, on the device, of what has left.

    Args:
        but_of: an owner whose calls go on.
        only_of: an owner; None for all.

    Returns:
        The calls that it was of.
    """
    found = [call for call in _OPEN.calls if call.owner is not but_of and (only_of is None or call.owner is only_of)]
    _OPEN.calls = [call for call in _OPEN.calls if call not in found]
    for call in reversed(found):
        call.settle()
    return found


def fetch_ahead(calls: Sequence[OffloadedTensors], outputs: Iterable[Tensor]) -> None:
    """The saved tensors of the calls come back when a gradient comes to one of the outputs."""

    def hook(_: Any) -> None:
        for call in reversed(calls):
            call.fetch()

    for output in outputs if calls else ():
        if output.grad_fn is not None:
            output.register_hook(hook)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes_of(storage: torch.UntypedStorage, device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


@uncompiled
def _open(saved: _Kept | _Moved) -> Tensor:
    return saved.open()


def _check(name: str, twin: Tensor, counter: int, shape: torch.Size) -> None:
    """The tensor is what it was when it was saved; hooks have to look for themselves, as autograd then does not."""
    if version(twin) != counter:
        raise ReconstructionError(
            f"module {name!r}: a tensor of shape {tuple(shape)} that its backward needs was changed in place after "
            f"autograd had saved it (it is at version {version(twin)}, and was at {counter}); ordinary autograd would "
            "refuse this backward too. Use the out-of-place operation, or make that change after backward"
        )

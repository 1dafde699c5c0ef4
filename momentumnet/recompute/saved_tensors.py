"""A block's own autograd graph without its saved tensors: dropped in forward, filled in again when backward asks.

PyTorch's saved-tensor hooks do the work. Each saved tensor becomes an empty `Slot`, owned by the graph alone; the first
slot that backward opens makes the owner recompute the block and fill all of them. A slot dies with the graph node that
owns it, so a recomputed tensor is freed as soon as it has been used.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.errors import ReconstructionError

Result = TypeVar("Result")


class _Watchers(threading.local):
    def __init__(self) -> None:
        self.stack: list[list[Tensor]] = []


_WATCHERS = _Watchers()


def watched(call: Callable[[], Result]) -> tuple[Result, list[Tensor]]:
    """``call()``, and the tensors that were saved and dropped in it."""
    saved: list[Tensor] = []
    _WATCHERS.stack.append(saved)
    try:
        return call(), saved
    finally:
        _WATCHERS.stack.pop()


class Slot:
    """The place of one saved tensor; empty but for the time between recompute and use."""

    __slots__ = ("__weakref__", "counter", "owner", "tensor")

    def __init__(self, owner: SavedTensors) -> None:
        self.owner = owner
        self.tensor: Tensor | None = None
        self.counter = 0  # the tensor's in-place counter when it was filled in


class SavedTensors:
    """The saved tensors of one block call.

    Args:
        name: the block's name, for errors.
        refill: called with this object when backward needs the tensors; has to run the block under `collecting`.
    """

    def __init__(self, name: str, refill: Callable[[SavedTensors], None]) -> None:
        self._name = name
        self._refill = refill
        self._slots: list[weakref.ref[Slot]] = []
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    def dropping(self) -> saved_tensors_hooks:
        """Context of the first run: every saved tensor is dropped."""
        return saved_tensors_hooks(self._drop, _open)

    def _drop(self, tensor: Tensor) -> Slot:
        slot = Slot(self)
        if _WATCHERS.stack:
            _WATCHERS.stack[-1].append(tensor)
        self._slots.append(weakref.ref(slot))
        self._kinds.append((tensor.shape, tensor.dtype))
        return slot

    def refill(self) -> None:
        """Recompute the block and fill the slots."""
        self._refill(self)

    def fill(self, collected: Collected) -> None:
        """Hand the recomputed tensors to the slots that are still waiting."""
        tensors = collected.checked(self._name)
        kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if kinds != self._kinds:
            raise ReconstructionError(
                f"block {self._name!r} saved other tensors for backward when it was recomputed: "
                f"{_difference(self._kinds, kinds)}. It took another path than in forward (a cache that was appended "
                "to, a Python attribute, a switch that changed in between)."
            )
        for reference, tensor in zip(self._slots, tensors, strict=True):
            slot = reference()
            if slot is not None:
                slot.tensor, slot.counter = tensor, tensor._version

    def changed(self, tensor: Tensor) -> ReconstructionError:
        """The error for a tensor that was overwritten after it had been filled in, by a step between two backwards."""
        return ReconstructionError(
            f"block {self._name!r}: a tensor of shape {tuple(tensor.shape)} that backward needs again (most likely a "
            "parameter) was changed in place since the last backward through this graph; ordinary autograd would "
            "refuse this backward too. Run forward again."
        )

    def empty(self) -> None:
        """Free what has not been used."""
        for reference in self._slots:
            slot = reference()
            if slot is not None:
                slot.tensor = None


def _open(slot: Slot) -> Tensor:
    if slot.tensor is None:
        slot.owner.refill()
    if slot.tensor is None:
        raise ReconstructionError("a saved tensor was not filled by its block's recompute; please report this")
    if slot.tensor._version != slot.counter:
        raise slot.owner.changed(slot.tensor)
    return slot.tensor


def _difference(expected: list[tuple[torch.Size, torch.dtype]], got: list[tuple[torch.Size, torch.dtype]]) -> str:
    if len(expected) != len(got):
        return f"{len(expected)} in forward, {len(got)} in backward"
    index = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    (shape, dtype), (other_shape, other_dtype) = expected[index], got[index]
    return f"number {index} was {tuple(shape)} {dtype} in forward, {tuple(other_shape)} {other_dtype} in backward"


class Collected:
    """The saved tensors of a recompute, in order."""

    def __init__(self) -> None:
        self._tensors: list[tuple[Tensor, int]] = []

    def collecting(self) -> saved_tensors_hooks:
        """Context of the recompute: its saved tensors come here, its own graph keeps none."""
        return saved_tensors_hooks(self._collect, never_opened)

    def _collect(self, tensor: Tensor) -> None:
        alias = tensor.detach()
        self._tensors.append((alias, alias._version))

    def checked(self, name: str) -> list[Tensor]:
        """The tensors, unless one was overwritten after it was saved (what plain autograd refuses as well)."""
        for tensor, counter in self._tensors:
            if tensor._version != counter:
                raise ReconstructionError(
                    f"block {name!r} changes a tensor of shape {tuple(tensor.shape)} in place after autograd has "
                    "saved it; ordinary autograd would refuse this backward too. Use the out-of-place operation."
                )
        return [tensor for tensor, _ in self._tensors]


def without_saved_tensors() -> saved_tensors_hooks:
    """Context of a recompute of which only the output is wanted.

    Gradients stay enabled in it: without them PyTorch picks other kernels, whose last bits differ.
    """
    return saved_tensors_hooks(_discard, never_opened)


def _discard(tensor: Tensor) -> None:
    if _WATCHERS.stack:
        _WATCHERS.stack[-1].append(tensor)


def never_opened(packed: Any) -> NoReturn:
    """What backward meets in the graph of a recompute, which is there for its saved tensors alone."""
    raise ReconstructionError("backward ran through the graph of a recompute; please report this")

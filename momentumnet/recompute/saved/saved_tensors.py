"""A block's own autograd graph without its saved tensors: dropped in forward, filled in again when backward asks.

PyTorch's saved-tensor hooks do the work. Each saved tensor becomes an empty `Slot`, owned by the graph alone; the first
slot that backward opens makes the owner recompute the block and fill all of them. A slot hands its tensor over when a
node of PyTorch's opens it, so that it is freed as soon as it has been used: one that sums a gradient last of all (a
linear layer's, for its bias) does so when what it multiplied with is gone. Other slots die with their node.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import _engine_run_backward, saved_tensors_hooks

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.saved.collected_tensors import WATCHERS, Collected
from momentumnet.recompute.saved.origins import Place
from momentumnet.recompute.saved.saved_values import SavedValues
from momentumnet.recompute.surroundings.uncompiled import uncompiled
from momentumnet.recompute.values.counters import version
from momentumnet.recompute.values.looks import Kind, kind_of

_RUN_BACKWARD = _engine_run_backward.__code__


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
        values: takes what there is to know of the tensors' values.
    """

    def __init__(self, name: str, refill: Callable[[SavedTensors], None], values: SavedValues) -> None:
        self._name = name
        self._refill = refill
        self._values = values
        self._slots: list[weakref.ref[Slot]] = []
        self._input: tuple[Tensor, int] | None = None

    def keep_input(self, x: Tensor) -> None:
        """Keep what the block was called on: as long as the graph may ask for its saved tensors."""
        self._input = x.detach(), version(x)

    def input(self) -> Tensor | None:
        """What was kept.

        Raises:
            ReconstructionError: it has been changed since.
        """
        if self._input is None:
            return None
        x, counter = self._input
        if version(x) != counter:
            raise ReconstructionError(
                f"block {self._name!r}: its input of shape {tuple(x.shape)} was changed in place after the block's "
                "forward, so it cannot be recomputed from it; make that change out of place, or only after backward"
            )
        return x

    def dropping(self) -> saved_tensors_hooks:
        """Context of the first run: every saved tensor is dropped."""
        return saved_tensors_hooks(self._drop, _open)

    @uncompiled
    def _drop(self, tensor: Tensor) -> Slot:
        references = sys.getrefcount(tensor)
        slot = Slot(self)
        if WATCHERS.stack:
            WATCHERS.stack[-1].append(tensor)
        self._slots.append(weakref.ref(slot))
        self._values.note(tensor, references)
        return slot

    def refill(self) -> None:
        """Recompute the block and fill the slots.

        Raises:
            ReconstructionError: the block itself asks for them, before it has ended.
        """
        if self._values.is_open:
            raise ReconstructionError(
                f"{self._name!r} takes a gradient in its own forward (torch.autograd.grad, backward), for which it "
                "would have to be recomputed before it has ended. Keep its activations: leave the block out "
                "(streams=[...]) or pass backward='stored'; outside a stream pass others='keep'"
            )
        self._refill(self)

    def fill(self, collected: Collected, differ: Callable[[str], ReconstructionError]) -> list[Tensor]:
        """Hand the recomputed tensors to the slots that are still waiting.

        Args:
            collected: what the recompute has saved.
            differ: makes the error of what is said to be otherwise than in forward.

        Returns:
            The reports of their values, to be compared with those of `SavedValues`.
        """
        slots = [reference() for reference in self._slots]
        tensors = collected.checked(self._name, slots)
        kinds = list(map(kind_of, tensors))
        expected = self._values.kinds
        if kinds != expected:
            raise differ(f"saved other tensors for backward when it was recomputed ({_difference(expected, kinds)})")
        for number, place in self._values.given.items():
            if (other := collected.place_of(number)) != place:
                raise differ(f"saved {_told(place)} in forward and {_told(other)} when it was recomputed")
        for slot, tensor in zip(slots, tensors, strict=True):
            if slot is not None:
                slot.tensor, slot.counter = tensor, tensor._version
        return self._values.reports_of(tensors)

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


@uncompiled
def _open(slot: Slot) -> Tensor:
    if slot.tensor is None:
        slot.owner.refill()
    tensor = slot.tensor
    if tensor is None:
        raise ReconstructionError("a saved tensor was not filled by its block's recompute; please report this")
    if tensor._version != slot.counter:
        raise slot.owner.changed(tensor)
    # A node of PyTorch's own opens a slot once. A function written in Python may ask for ``ctx.saved_tensors`` again
    # and again; it stands below then.
    try:
        is_asked_by_the_engine = sys._getframe(1).f_code is _RUN_BACKWARD
    except ValueError:  # a thread of a device
        is_asked_by_the_engine = True
    if is_asked_by_the_engine:
        slot.tensor = None
    return tensor


def _told(place: Place | None) -> str:
    return "another tensor" if place is None else place.told()


def _difference(expected: list[Kind], got: list[Kind]) -> str:
    if len(expected) != len(got):
        return f"{len(expected)} in forward, {len(got)} in backward"
    index = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    (shape, dtype), (other_shape, other_dtype) = expected[index], got[index]
    return f"number {index} was {tuple(shape)} {dtype} in forward, {tuple(other_shape)} {other_dtype} in backward"

"""A block's own autograd graph without its saved tensors: dropped in forward, filled in again when backward asks.

PyTorch's saved-tensor hooks do the work. Each saved tensor becomes an empty `Slot`, owned by the graph alone; the first
slot that backward opens makes the owner recompute the block and fill all of them. A slot hands its tensor over when a
node of PyTorch's opens it, so that it is freed as soon as it has been used: one that sums a gradient last of all (a
linear layer's, for its bias) does so when what it multiplied with is gone. Other slots die with their node.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from torch import Tensor
from torch.autograd.graph import _engine_run_backward as _run_backward
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.arguments import version
from momentumnet.recompute.origins import Origins, Place
from momentumnet.recompute.saved_values import Kind, SavedValues
from momentumnet.recompute.uncompiled import uncompiled

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
        if _WATCHERS.stack:
            _WATCHERS.stack[-1].append(tensor)
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
        tensors = collected.checked(self._name, [reference() is not None for reference in self._slots])
        kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]
        expected = self._values.kinds
        if kinds != expected:
            raise differ(f"saved other tensors for backward when it was recomputed ({_difference(expected, kinds)})")
        for number, place in self._values.given.items():
            if (other := collected.place_of(number)) != place:
                raise differ(f"saved {_told(place)} in forward and {_told(other)} when it was recomputed")
        for reference, tensor in zip(self._slots, tensors, strict=True):
            slot = reference()
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
    if _is_asked_by_the_engine():
        slot.tensor = None
    return tensor


def _is_asked_by_the_engine() -> bool:
    """Whether a node of PyTorch's own opens a slot, which it does once.

    A function written in Python may ask for ``ctx.saved_tensors`` again and again; it stands below the caller then.
    """
    try:
        return sys._getframe(2).f_code is _run_backward.__code__
    except ValueError:  # a thread of a device
        return True


def _told(place: Place | None) -> str:
    return "another tensor" if place is None else place.told()


def _difference(expected: list[Kind], got: list[Kind]) -> str:
    if len(expected) != len(got):
        return f"{len(expected)} in forward, {len(got)} in backward"
    index = next(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    (shape, dtype), (other_shape, other_dtype) = expected[index], got[index]
    return f"number {index} was {tuple(shape)} {dtype} in forward, {tuple(other_shape)} {other_dtype} in backward"


class Enough(BaseException):
    """A recompute has saved all that backward asks for; what it would compute behind that, nobody needs."""


class Collected:
    """The saved tensors of a recompute, in order.

    Args:
        name: the block's name, for errors.
        origins: the tensors that the recompute is given; asked once, while it runs, and held until `settle`.
        enough: with so many of them the recompute ends, by raising `Enough`; None to let it run to its end.
        note: called with each tensor, and its place among those that were given.
    """

    def __init__(
        self,
        name: str,
        origins: Callable[[], Origins],
        *,
        enough: int | None = None,
        note: Callable[[Tensor, Place | None], None] | None = None,
    ) -> None:
        self._enough, self._note = enough, note
        self._tensors: list[tuple[Tensor, int]] = []
        self._left = LeftBehind(name)
        self._find_origins: Callable[[], Origins] | None = origins
        self._origins: Origins | None = None
        self._places: list[Place | None] = []  # of those that begin where a given one begins; of others if asked for

    def collecting(self) -> saved_tensors_hooks:
        """Context of the recompute: its saved tensors come here, its own graph keeps none."""
        return saved_tensors_hooks(self._collect, never_opened)

    @uncompiled
    def _collect(self, tensor: Tensor) -> LeftBehind:
        if len(self._tensors) == self._enough:  # the block's own code has caught it, and goes on by another way
            raise Enough
        alias = tensor.detach()
        self._tensors.append((alias, alias._version))
        if self._origins is None and self._find_origins is not None:
            self._origins = self._find_origins()
        place = None if self._origins is None else self._origins.starting_at(tensor)
        self._places.append(place)
        if self._note is not None:
            self._note(tensor, place)
        if len(self._tensors) == self._enough:
            raise Enough
        return self._left

    def place_of(self, number: int) -> Place | None:
        """Where one of the tensors lies, among those that the recompute was given."""
        if self._places[number] is None and self._origins is not None:
            self._places[number] = self._origins.place_of(self._tensors[number][0])
        return self._places[number]

    def settle(self, numbers: Iterable[int]) -> None:
        """Find these tensors' places now, and let go of what the recompute was given: a cast of it may be saved."""
        for number in numbers:
            if number < len(self._places):
                self.place_of(number)
        self._origins = self._find_origins = None

    def checked(self, name: str, asked_for: Sequence[bool]) -> list[Tensor]:
        """The tensors, unless one was overwritten after it was saved (what plain autograd refuses as well).

        Args:
            name: the block's name.
            asked_for: which of those that the first run saved backward may ask for. Autograd looks at no others: what
                an index was computed from (a codebook's rows) is often overwritten.
        """
        for (tensor, counter), may_be_asked in zip(
            self._tensors, asked_for, strict=False
        ):  # numbers are compared later
            if may_be_asked and tensor._version != counter:
                raise ReconstructionError(
                    f"block {name!r} changes a tensor of shape {tuple(tensor.shape)} in place after autograd has "
                    "saved it; ordinary autograd would refuse this backward too. Use the out-of-place operation."
                )
        return [tensor for tensor, _ in self._tensors]


class LeftBehind:
    """Stands in the graph of a recompute where a tensor was saved."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def without_saved_tensors(name: str, values: SavedValues | None = None) -> saved_tensors_hooks:
    """Context of a recompute of the block ``name`` of which only the output is wanted, and what ``values`` take.

    Gradients stay enabled in it: without them PyTorch picks other kernels, whose last bits differ.
    """
    return saved_tensors_hooks(_Discarded(name, values).note, never_opened)


class _Discarded:
    def __init__(self, name: str, values: SavedValues | None) -> None:
        self._left, self._values = LeftBehind(name), values

    @uncompiled
    def note(self, tensor: Tensor) -> LeftBehind:
        references = sys.getrefcount(tensor)
        if _WATCHERS.stack:
            _WATCHERS.stack[-1].append(tensor)
        if self._values is not None:
            self._values.note(tensor, references)
        return self._left


def never_opened(packed: Any) -> NoReturn:
    """What backward meets in the graph of a recompute, which is there for its saved tensors alone."""
    block = f"block {packed.name!r}" if isinstance(packed, LeftBehind) else "a block"
    raise ReconstructionError(
        f"a gradient is asked of a tensor that {block} computed when it was recomputed, and whose graph is empty. The "
        "block does not return this tensor but leaves it where only the caller finds it (a list, a dict, a "
        "global), and a backward that has run since has put the recomputed one there; it cannot be seen, nor be "
        "compared. Return it beside the stream, as in `return x, aux`, or add it to the loss before the first "
        "backward, or convert with backward='stored' (outside a stream: others='keep')."
    )

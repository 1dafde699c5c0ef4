"""What a recompute saves for backward: collected in order for the slots of the first run, or dropped again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.saved.origins import Origins, Place
from momentumnet.recompute.saved.saved_values import SavedValues
from momentumnet.recompute.surroundings.uncompiled import uncompiled

Result = TypeVar("Result")


class _Watchers(threading.local):
    def __init__(self) -> None:
        self.stack: list[list[Tensor]] = []


WATCHERS = _Watchers()


def watched(call: Callable[[], Result]) -> tuple[Result, list[Tensor]]:
    """``call()``, and the tensors that were saved and dropped in it."""
    saved: list[Tensor] = []
    depth = len(WATCHERS.stack)
    try:
        WATCHERS.stack.append(saved)
        return call(), saved
    finally:
        del WATCHERS.stack[depth:]


class Enough(BaseException):
    """A recompute has saved all that backward asks for; what it would compute behind that, nobody needs."""


class Collected:
    """The saved tensors of a recompute, in order.

    Args:
        name: the block's name, for errors.
        origins: the tensors that the recompute is given; asked once, while it runs, and held until they are let go of.
        given: the numbers of those to be collected whose places among them are wanted.
        enough: with so many of them the recompute ends, by raising `Enough`; None to let it run to its end.
        note: called with each tensor, and its place among those that were given.
    """

    def __init__(
        self,
        name: str,
        origins: Callable[[], Origins],
        *,
        given: Collection[int] = (),
        enough: int | None = None,
        note: Callable[[Tensor, Place | None], None] | None = None,
    ) -> None:
        self._given, self._enough, self._note = given, enough, note
        self._tensors: list[tuple[Tensor, int]] = []
        self._left = LeftBehind(name)
        self._find_origins: Callable[[], Origins] | None = origins if given or note is not None else None
        self._origins: Origins | None = None
        # By number: of those that begin where a given one begins; of others if asked for.
        self._places: dict[int, Place | None] = {}

    def collecting(self) -> saved_tensors_hooks:
        """Context of the recompute: its saved tensors come here, its own graph keeps none."""
        return saved_tensors_hooks(self._collect, never_opened)

    @contextmanager
    def until_enough(self) -> Iterator[None]:
        """Context of the recompute, around that: it ends here where it has saved enough."""
        try:
            yield
        except Enough:
            pass
        except Exception:  # TorchScript's interpreter makes a RuntimeError of whatever is raised in it
            if len(self._tensors) != self._enough:
                raise

    @uncompiled
    def _collect(self, tensor: Tensor) -> LeftBehind:
        number = len(self._tensors)
        if number == self._enough:  # the block's own code has caught it, and goes on by another way
            raise Enough
        alias = tensor.detach()
        self._tensors.append((alias, alias._version))
        if self._origins is None and self._find_origins is not None:
            self._origins = self._find_origins()
        if self._origins is not None and (self._note is not None or number in self._given):
            place = self._places[number] = self._origins.starting_at(tensor)
            if self._note is not None:
                self._note(tensor, place)
        if number + 1 == self._enough:
            raise Enough
        return self._left

    def place_of(self, number: int) -> Place | None:
        """Where one of the ``given`` tensors lies, among those that the recompute was given."""
        if self._places[number] is None and self._origins is not None:
            self._places[number] = self._origins.place_of(self._tensors[number][0])
        return self._places[number]

    def settle(self) -> None:
        """Find the places that are wanted now, and let go of what the recompute was given: a cast may be saved."""
        for number in self._given:
            if number in self._places:
                self.place_of(number)
        self._origins = self._find_origins = None

    def let_go(self) -> None:
        """All has been handed over. The graph of the recompute holds this: somebody (a hook) may have kept its output.

        What the recompute was given leads to its modules, and may lead to that hook.
        """
        self._tensors, self._places = [], {}
        self._origins = self._find_origins = self._note = None

    def checked(self, name: str, asked_for: Sequence[object | None]) -> list[Tensor]:
        """The tensors, unless one was overwritten after it was saved (what plain autograd refuses as well).

        Args:
            name: the block's name.
            asked_for: what is not None for those that backward may ask for, of all that the first run saved. Autograd
                looks at no others: what an index was computed from (a codebook's rows) is often overwritten.
        """
        for (tensor, counter), asks in zip(self._tensors, asked_for, strict=False):  # numbers are compared later
            if asks is not None and tensor._version != counter:
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
        if WATCHERS.stack:
            WATCHERS.stack[-1].append(tensor)
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

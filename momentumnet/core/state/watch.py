"""The forward of a pass, until its reports are read: once, at the stream's end, to learn from them.

Steps read nothing from the device. Should a value have outgrown its scale, or be NaN, what follows it means nothing:
then the pass is played again from its start, with care, before anybody is given what the stream returns.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from momentumnet.arithmetic.reports import has_values, read
from momentumnet.core.checks import ledger
from momentumnet.core.state.coupling import State
from momentumnet.core.state.range import Range
from momentumnet.recompute.values.counters import version

Learn = Callable[[Sequence["Seen"], Range | None, tuple[float, float] | None], None]


@dataclass(frozen=True)
class Seen:
    """What a step has reported: its place in the stream (-1 for the start), its scale, the magnitude as integers."""

    place: int
    exponent: int
    magnitude: float


@dataclass
class Passed:
    """A step of the forward as it went: what has to be known to read its report, and to make it again.

    Attributes:
        place: of its block in the stream; -1 for the start.
        coarsest: the scale that earlier passes had to take there, if any.
        report: what it reported, unread.
        exponent: the scale behind it.
        step: how to make it again; None for the start.
        handed_out: the tensors that the parent was given, if it still has them.
    """

    place: int
    coarsest: int | None
    report: Tensor
    exponent: int
    step: Any = None
    handed_out: list[weakref.ref[Tensor]] = field(default_factory=list)


class Watch:
    """The steps of one forward.

    Args:
        state: of the stream at its start.
        learn: takes what the steps have reported, once it is read, the scale at their end, and the largest x and v at
            rest, if they are known.
        start: the tensor that the stream starts from, if the pass can be played again from it.
        begin: a state at the start anew, one that is careful.
        velocity: the one that the stream starts with.
    """

    def __init__(
        self,
        state: State,
        learn: Learn,
        start: Tensor | None = None,
        begin: Callable[[Tensor], State] | None = None,
        velocity: Tensor | None = None,
    ) -> None:
        self.velocity = velocity
        self.learn, self.begin, self._unfit = learn, begin, state.unfit_on_device
        self.start = None if start is None else start.detach()
        self._counter = 0 if start is None else version(start)
        self.passed: list[Passed] = []
        self.before: list[Seen] = []
        self.seen: list[Seen] = []
        self.unread = True
        self.largest: tuple[float, float] | None = None
        self.restart(state)
        if self.first.report.is_cuda and has_values(self.first.report):
            ledger.flag_on(self.first.report.device)  # there before a graph is recorded

    def restart(self, state: State) -> None:
        """The pass begins with this state."""
        self.first = Passed(-1, None, state.report, state.exponent)

    @property
    def can_play_again(self) -> bool:
        """Whether the start is as it was."""
        return self.start is not None and version(self.start) == self._counter

    def note(self, state: State, place: int, coarsest: int | None, step: Any) -> None:
        """A step has been made."""
        self.passed.append(Passed(place, coarsest, state.report, state.exponent, step))
        self.unread = True

    def hand_out(self, x: Tensor, output: Any) -> None:
        """The parent gets ``x`` now, and what the block returned beside the stream."""
        self.passed[-1].handed_out = [weakref.ref(tensor) for tensor in _handed_out(x, output)]

    def continued(self, state: State) -> Watch:
        """The watch of blocks that go on from here, and cannot be made over."""
        watch = Watch(state, self.learn)
        if self.unread:
            watch.first, *watch.passed = (replace(entry, step=None, handed_out=[]) for entry in self.entries)
        else:
            watch.before = self.seen
        watch.largest = self.largest
        return watch

    @property
    def entries(self) -> list[Passed]:
        """The start and the steps."""
        return [self.first, *self.passed]

    def read(self, beside: Tensor | None) -> list[float]:
        """Read all reports into ``seen``, and return the values ``beside`` them; nothing where nothing can be read."""
        entries = self.entries
        magnitudes = torch.stack([entry.report for entry in entries])[:, 0]
        if not has_values(magnitudes):
            ledger.note(self._unfit(magnitudes))
            return []
        values = magnitudes if beside is None else torch.cat([magnitudes, beside.to(magnitudes.dtype)])
        numbers = read(values)
        self.unread = False
        own = [Seen(entry.place, entry.exponent, number) for entry, number in zip(entries, numbers, strict=False)]
        # Where it continues another one, its start is the last step there.
        self.seen = [*self.before, *own[1:]] if self.before else own
        return numbers[len(entries) :]

    def end(self) -> None:
        """The forward stands as it went."""
        for passed in self.passed:
            if passed.step is not None:
                passed.step.call.stands()

    def give_right_values(self, passed: Passed, x: Tensor, output: Any) -> None:
        """Put what a step has really returned into the tensors that the parent was given for it."""
        for reference, value in zip(passed.handed_out, _handed_out(x, output), strict=False):
            tensor = reference()
            if tensor is not None:
                tensor.data.copy_(value)  # through .data: nobody has changed it


def _handed_out(x: Tensor, output: Any) -> list[Tensor]:
    """The stream tensor, and those that stand behind it in a block's output."""
    others = () if isinstance(output, Tensor) else pytree.tree_leaves(output)[1:]
    return [x, *(leaf for leaf in others if isinstance(leaf, Tensor))]

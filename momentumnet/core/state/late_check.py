"""What a pass has reported, where its forward reads nothing: told on the device at once, and on the host in backward.

At the stream's end the device itself fills the output with NaN if a value did not fit its scale. The numbers are sent
to the host then, without a wait, and looked at when a backward through the stream ends, or, where none comes, before a
later pass begins.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.arithmetic.reports import Reading, has_values
from momentumnet.core.checks import audit, ledger
from momentumnet.core.state.coupling import State
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.range import Range
from momentumnet.core.state.watch import Seen, Watch
from momentumnet.errors import StateRangeError

# Bits that x and v may grow by from pass to pass where a state is put to rest unseen.
GROWTH_BITS = 2


def scale_of(state: State) -> Range | None:
    """The scale of the state's integers; floats have none."""
    return state.range if isinstance(state, ExactState) else None


def largest_of(extremes: Sequence[float], exponent: int) -> tuple[float, float]:
    """The largest x and v, of the smallest and largest integer x and those of v at this scale."""
    x, v = (math.ldexp(max(-low, high), -exponent) for low, high in (extremes[:2], extremes[2:]))
    return x, v


@dataclass(frozen=True)
class Unseen:
    """What a state was put to rest by that nobody has looked at.

    Attributes:
        found: its extremes, unread: the smallest and largest integer x, then those of v.
        expected: those for which there is room.
        exponent: the scale.
    """

    found: Tensor
    expected: Sequence[int]
    exponent: int

    @classmethod
    def of(cls, found: Tensor, largest: tuple[float, float], exponent: int) -> Unseen:
        """With room for GROWTH_BITS more than the ``largest`` x and v of the pass before: from -2**k to 2**k - 1."""
        bounds = [1 << (math.ceil(math.ldexp(value, exponent)).bit_length() + GROWTH_BITS) for value in largest]
        return cls(found, [number for bound in bounds for number in (-bound, bound - 1)], exponent)

    def is_outside(self) -> Tensor:
        """Whether it is not `fits`, on the device."""
        magnitudes = torch.maximum(self.found, ~self.found)
        wrong = torch.zeros((), dtype=torch.bool, device=self.found.device)
        for two, most in zip(magnitudes.split(2), self.expected[1::2], strict=True):
            if most < torch.iinfo(self.found.dtype).max:
                wrong |= (two > most).any()
        return wrong

    def fits(self, found: Sequence[float]) -> bool:
        """Whether the extremes, once they are read, lie where there is room."""
        low_x, high_x, low_v, high_v = self.expected
        return low_x <= found[0] and found[1] <= high_x and low_v <= found[2] and found[3] <= high_v


class UnseenRests:
    """How the states of a pass are put to rest where nothing is read.

    Args:
        largest: the largest x and v of the pass before, at rest; None where they are not known.
    """

    def __init__(self, largest: tuple[float, float] | None) -> None:
        self._largest = largest
        self.made: list[Unseen] = []

    def extremes_for(self, state: State) -> Sequence[int] | None:
        """What `State.pack` is given; None where nothing is known, or the state needs nothing."""
        found = None if self._largest is None else state.extremes()
        if found is None or self._largest is None:
            return None
        self.made.append(Unseen.of(found, self._largest, state.exponent))
        return self.made[-1].expected


class LateCheck:
    """The check of one pass.

    Args:
        stream: its name.
        watch: of its steps.
        state: at their end, or where they have come to.
        unseen: what states were put to rest by.
    """

    def __init__(self, stream: str, watch: Watch, state: State, unseen: Sequence[Unseen] = ()) -> None:
        self._stream, self._learn = stream, watch.learn
        self._range = scale_of(state)  # not the state itself, which may go
        self._unseen = unseen
        entries = watch.entries
        self._steps = [(entry.place, entry.exponent) for entry in entries]
        magnitudes = torch.stack([entry.report for entry in entries])[:, 0]
        self.wrong = state.unfit_on_device(magnitudes).any()
        for rest in unseen:
            self.wrong |= rest.is_outside()
        self._reading: Reading | None = None
        self._failed = False
        if has_values(magnitudes):
            self._reading = Reading(torch.cat([magnitudes, *(rest.found.to(magnitudes.dtype) for rest in unseen)]))
        else:
            ledger.note(self.wrong)

    def mark(self, output: Tensor) -> None:
        """What the stream returns is NaN if something is wrong; and a backward from there looks at the numbers."""
        with torch.no_grad():
            output.masked_fill_(self.wrong, torch.nan)
        if output.requires_grad:
            output.register_hook(self.in_backward)

    def in_backward(self, _: Tensor | None = None) -> None:
        """A backward comes by: look at the numbers when it ends."""
        audit.look_at(self)

    @property
    def is_there(self) -> bool:
        """Whether `look` would not wait."""
        return self._reading is None or self._reading.is_there

    def look(self) -> bool:
        """Whether all was well; what there is to learn is learnt."""
        if self._reading is not None:
            values, self._reading = self._reading.values(), None
            self._failed = not self._learnt_from(values)
        return not self._failed

    def close(self) -> None:
        """`look`.

        Raises:
            StateRangeError: something was wrong.
        """
        if not self.look():
            raise StateRangeError(
                f"stream {self._stream!r}: values outgrew their scale by more than its headroom, or were NaN or Inf, "
                "in a pass whose range was to be checked in backward; what it returned was NaN. Throw these gradients "
                "away (zero_grad), put back buffers that the forward has moved (running statistics, in which NaN would "
                "stay), and run the step again from its forward: the next pass has more room, or looks at every step. "
                "If this comes often, call momentumnet.set_range_check(model, 'forward')"
            )

    def _learnt_from(self, values: list[float]) -> bool:
        seen = [Seen(*step, value) for step, value in zip(self._steps, values, strict=False)]
        if any(_unfit(self._range, entry.magnitude) for entry in seen):
            self._learn(seen, self._range, None)
            return False
        found = [values[i : i + 4] for i in range(len(seen), len(values), 4)]
        largest = largest_of(found[-1], self._unseen[-1].exponent) if found else None
        self._learn(seen, self._range, largest)
        return all(rest.fits(extremes) for rest, extremes in zip(self._unseen, found, strict=True))


def _unfit(range_: Range | None, magnitude: float) -> bool:
    """Whether a report tells of values that did not fit; of floats, that they were not finite."""
    return not math.isfinite(magnitude) if range_ is None else range_.excludes(magnitude)


class LatePass:
    """A pass that is looked at in backward, for whatever of its graph a backward comes by.

    The stream's steps hold it, and not the tape: the graph may outlive that.

    Args:
        on_the_way: a method that gives the check of what there is, where the pass has not ended.
    """

    def __init__(self, on_the_way: Callable[[], LateCheck | None]) -> None:
        self.check: LateCheck | None = None
        self.goes_on(on_the_way)

    def goes_on(self, on_the_way: Callable[[], LateCheck | None]) -> None:
        """Another tape is that of the pass from here on."""
        self._on_the_way = weakref.WeakMethod(on_the_way)

    def in_backward(self) -> None:
        """A backward comes by: look at the numbers when it ends."""
        on_the_way = self._on_the_way()
        check = self.check or (None if on_the_way is None else on_the_way())
        if check is not None:
            check.in_backward()


class Unchecked:
    """The checks of a stream's passes, until a backward has come by. A copy of the stream has none."""

    def __init__(self) -> None:
        self._checks: list[LateCheck] = []

    def __reduce__(self) -> tuple[type[Unchecked], tuple[()]]:
        return Unchecked, ()

    def add(self, check: LateCheck) -> None:
        """A pass has ended."""
        self._checks.append(check)

    def look(self) -> None:
        """Learn from those whose numbers have arrived, before another pass begins."""
        there = [check for check in self._checks if check.is_there]
        self._checks = [check for check in self._checks if check not in there]
        for check in there:
            check.look()

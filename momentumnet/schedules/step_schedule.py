"""What changes a model's rule from step to step of a training, and goes into its checkpoints.

A rule's factors are fractions in every pass, so what lies between the ends is rounded to one. Not to any: a fraction
like 113/127 needs a store of twice the bytes (`arithmetic.fixed_point.has_short_store`), where 8/9 beside it does not.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet.arithmetic.fixed_point import MAX_DENOMINATOR, has_short_store
from momentumnet.errors import CheckpointError
from momentumnet.options import one_of

# The share of the way from start to end that is covered when ``share`` of the steps are done.
SHAPES: dict[str, Callable[[Fraction, Fraction, Fraction], float | Fraction]] = {
    "linear": lambda start, end, share: share,
    "cosine": lambda start, end, share: (1 - math.cos(math.pi * share)) / 2,
    "geometric": lambda start, end, share: (
        share if start == end else (start ** (1 - share) * end**share - start) / (end - start)
    ),
}


class StepSchedule(ABC):
    """A schedule over the steps of an optimizer. A subclass gives the model the rule of step 0 when it is made.

    Attributes:
        model: whose rule is changed.
        optimizer_steps: steps from one end to the other.
        shape: of the way between.
        steps_done: where the schedule stands.
    """

    _name: str
    """In messages: a schedule of what it is."""

    def __init__(self, model: nn.Module, optimizer_steps: int, shape: str) -> None:
        one_of("shape", shape, SHAPES)
        if type(optimizer_steps) is not int or optimizer_steps < 1:
            raise ValueError(f"optimizer_steps must be a positive integer, got {optimizer_steps!r}")
        self.model, self.optimizer_steps, self.shape, self.steps_done = model, optimizer_steps, shape, 0

    def step(self) -> None:
        """The optimizer has made a step: the rule is that of the next one."""
        self._go_to(self.steps_done + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, and what it is: numbers and text, for ``json`` or ``torch.save``."""
        return {"steps_done": self.steps_done, **self._what_it_is()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken: the model's rule becomes what it was then.

        A training that is to be longer than it was: ``load_state_dict({**state, "optimizer_steps": more})`` into a
        schedule of as many steps takes this place in it.

        Raises:
            CheckpointError: it is no such state, or one of another schedule; nothing is changed.
        """
        what = self._what_it_is()
        if not isinstance(state, Mapping) or state.keys() != {"steps_done", *what}:
            raise CheckpointError(f"expected what state_dict of a {self._name} schedule returned, got {state!r}")
        other = {name: state[name] for name in what if state[name] != what[name]}
        if other:
            here = {name: what[name] for name in other}
            raise CheckpointError(
                f"the state belongs to another {self._name} schedule: it has {other}, this one {here}; make the "
                "schedule as the saved one was"
            )
        if type(state["steps_done"]) is not int or state["steps_done"] < 0:
            raise CheckpointError(
                f"steps_done of a {self._name} schedule must be 0 or more, got {state['steps_done']!r}"
            )
        self._go_to(state["steps_done"])

    def _covered(self, start: Fraction, end: Fraction, step: int) -> Fraction:
        """The share of the way from one factor to the other that ``step`` steps cover, between 0 and all of them."""
        return Fraction(SHAPES[self.shape](start, end, Fraction(step, self.optimizer_steps)))

    def _go_to(self, step: int) -> None:
        self.steps_done = step
        self._set_rule()

    @abstractmethod
    def _what_it_is(self) -> dict[str, Any]:
        """What tells this schedule from others, as plain values."""

    @abstractmethod
    def _set_rule(self) -> None:
        """Give the model the rule of ``steps_done``."""


def fraction_at(start: Fraction, end: Fraction, covered: Fraction) -> Fraction:
    """What lies where this share of the way from start to end is covered."""
    return start + (end - start) * covered


def fraction_between(one: Fraction, other: Fraction, wanted: float) -> Fraction:
    """The fraction in (0, 1) that is nearest to ``wanted`` of those with a short store; no further than the ends.

    Above 10/11, where there is none, the nearest n/d with d <= 128 of all.
    """
    low, high = sorted((one, other))
    return min(max(_nearest(wanted), low), high)


def _nearest(value: float) -> Fraction:
    short = _short_fractions()
    if value > short[-1]:
        nearest = Fraction(value).limit_denominator(MAX_DENOMINATOR)
        return min(nearest, Fraction(MAX_DENOMINATOR - 1, MAX_DENOMINATOR))
    index = bisect_left(short, value)
    below, above = short[max(index - 1, 0)], short[index]
    return below if value - below <= above - value else above


@functools.cache
def _short_fractions() -> list[Fraction]:
    """All that have a short store, in order: between 1/128 and 10/11 none is further than 1/90 from the next."""
    fractions = {Fraction(n, d) for d in range(2, MAX_DENOMINATOR + 1) for n in range(1, d)}
    return sorted(filter(has_short_store, fractions))

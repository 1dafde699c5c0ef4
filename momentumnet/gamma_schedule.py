"""Gamma over the steps of a training: from the value that keeps a function to the one whose memory is wanted, or to 0.

Gamma is a fraction in every pass, so what a shape gives between the ends is rounded to one. Not to any: a fraction like
113/127 needs a store of twice the bytes (`arithmetic.fixed_point.has_short_store`), where 8/9 beside it does not.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet.arithmetic.fixed_point import MAX_DENOMINATOR, exact_gamma, has_short_store
from momentumnet.conversion import set_gamma, streams_that_take
from momentumnet.errors import CheckpointError

# From start to end, by the share of the steps that are done.
_SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda start, end, share: start + (end - start) * share,
    "cosine": lambda start, end, share: start + (end - start) * (1 - math.cos(math.pi * share)) / 2,
    "geometric": lambda start, end, share: start ** (1 - share) * end**share,
}


def schedule_gamma(
    model: nn.Module, optimizer_steps: int, start: float | Fraction, end: float | Fraction, *, shape: str = "linear"
) -> GammaSchedule:
    """Change gamma of all the model's streams over the steps of a training; call ``step()`` behind the optimizer's.

    A pretrained network keeps its function at a small gamma (1/64, 1/8) and takes the least memory at a large one: from
    ``1/8`` to ``0.9`` it has both. From ``1/8`` to ``0`` it ends as a network that its stock class computes.

    Training step t = 0, 1, ... runs at ``schedule.at(t)``: ``start`` for t = 0, exactly ``end`` from t =
    ``optimizer_steps`` on, and between them the nearest fraction n/d with d <= 128 whose store is short, n/(1 - gamma)
    <= 128 (above 10/11, where there is none, the nearest of all): no value between takes more bytes for its store than
    the ends do. The values between are never 0, where activations are stored, nor 1.

    Args:
        model: a converted model, wrapped (``DistributedDataParallel``) or not, or one that holds `MomentumNet` modules.
            Gamma becomes that of step 0. A copy that is made of it keeps the gamma that it has then.
        optimizer_steps: calls of ``step()`` until gamma is ``end``.
        start: in [0, 1], rounded to the nearest n/d with d <= 128.
        end: likewise.
        shape: "linear", "cosine", or "geometric": bits a block, log2(1/gamma), change linearly then; neither end is 0.

    Returns:
        The schedule, with ``step``, ``gamma``, ``at``, ``state_dict`` and ``load_state_dict``.

    Raises:
        ConversionError: the model holds no momentum stream.
        TypeError: an end is no number.
        ValueError: there is no such shape, an end is outside [0, 1], or 1 with the flush, or 0 with "geometric"; or
            ``optimizer_steps`` is no positive integer.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> net = mn.MomentumNet([torch.nn.Linear(4, 4) for _ in range(3)], gamma=0.9, use_backprop=False)
        >>> schedule = mn.schedule_gamma(net, 3, 1 / 8, 1 / 2)
        >>> used = []
        >>> for _ in range(5):
        ...     used.append(str(schedule.gamma))  # forward, backward and optimizer.step() stand here
        ...     schedule.step()
        >>> used
        ['1/8', '1/4', '3/8', '1/2', '1/2']
    """
    return GammaSchedule(model, optimizer_steps, start, end, shape=shape)


class GammaSchedule:
    """Gamma over the steps of a training; `schedule_gamma` makes one, and says what its arguments are.

    Attributes:
        model: whose gamma is changed.
        start: gamma of the first step.
        end: gamma after ``optimizer_steps``.
        optimizer_steps: steps from one to the other.
        shape: of the way between.
        steps_done: where the schedule stands.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> net = mn.MomentumNet([torch.nn.Linear(4, 4) for _ in range(3)], gamma=0.9, use_backprop=False)
        >>> schedule = mn.schedule_gamma(net, 4, 1 / 2, 0)
        >>> [str(schedule.at(step)) for step in (0, 2, 4)]
        ['1/2', '1/4', '0']
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer_steps: int,
        start: float | Fraction,
        end: float | Fraction,
        *,
        shape: str = "linear",
    ) -> None:
        if shape not in _SHAPES:
            raise ValueError(f"shape must be one of {', '.join(map(repr, _SHAPES))}, got {shape!r}")
        if type(optimizer_steps) is not int or optimizer_steps < 1:
            raise ValueError(f"optimizer_steps must be a positive integer, got {optimizer_steps!r}")
        self.start, self.end = exact_gamma(start), exact_gamma(end)
        if shape == "geometric" and not (self.start and self.end):
            raise ValueError(
                f"shape 'geometric' multiplies gamma from step to step, so neither end can be 0; got {self.start} and "
                f"{self.end}. Take 'linear' or 'cosine'"
            )
        streams_that_take(model, self.start, self.end)
        self.model, self.optimizer_steps, self.shape = model, optimizer_steps, shape
        self._go_to(0)

    @property
    def gamma(self) -> Fraction:
        """That of the model now."""
        return self.at(self.steps_done)

    def at(self, step: int) -> Fraction:
        """Gamma in training step ``step``, counted from 0."""
        if step >= self.optimizer_steps:
            return self.end
        if step <= 0:
            return self.start
        wanted = _SHAPES[self.shape](float(self.start), float(self.end), step / self.optimizer_steps)
        low, high = sorted((self.start, self.end))
        return min(max(_nearest(wanted), low), high)

    def step(self) -> None:
        """The optimizer has made a step: gamma is that of the next one."""
        self._go_to(self.steps_done + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, and what it is: numbers and text, for ``json`` or ``torch.save``."""
        return {"steps_done": self.steps_done, **self._what_it_is()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken: the model's gamma becomes what it was then.

        A training that is to be longer than it was: ``load_state_dict({**state, "optimizer_steps": more})`` into a
        schedule of as many steps takes this place in it.

        Raises:
            CheckpointError: it is no such state, or one of another schedule; nothing is changed.
        """
        what = self._what_it_is()
        if not isinstance(state, Mapping) or state.keys() != {"steps_done", *what}:
            raise CheckpointError(f"expected what state_dict of a gamma schedule returned, got {state!r}")
        other = {name: state[name] for name in what if state[name] != what[name]}
        if other:
            here = {name: what[name] for name in other}
            raise CheckpointError(
                f"the state belongs to another gamma schedule: it has {other}, this one {here}; make the schedule as "
                "the saved one was"
            )
        if type(state["steps_done"]) is not int or state["steps_done"] < 0:
            raise CheckpointError(f"steps_done of a gamma schedule must be 0 or more, got {state['steps_done']!r}")
        self._go_to(state["steps_done"])

    def _what_it_is(self) -> dict[str, Any]:
        ends = {"start": str(self.start), "end": str(self.end)}
        return {"optimizer_steps": self.optimizer_steps, **ends, "shape": self.shape}

    def _go_to(self, step: int) -> None:
        self.steps_done = step
        set_gamma(self.model, self.gamma)


def _nearest(value: float) -> Fraction:
    """The fraction in (0, 1) to run at instead of ``value``."""
    short = _short_gammas()
    if value > short[-1]:
        nearest = Fraction(value).limit_denominator(MAX_DENOMINATOR)
        return min(nearest, Fraction(MAX_DENOMINATOR - 1, MAX_DENOMINATOR))
    index = bisect_left(short, value)
    below, above = short[max(index - 1, 0)], short[index]
    return below if value - below <= above - value else above


@functools.cache
def _short_gammas() -> list[Fraction]:
    """All that have a short store, in order: between 1/128 and 10/11 none is further than 1/90 from the next."""
    fractions = {Fraction(n, d) for d in range(2, MAX_DENOMINATOR + 1) for n in range(1, d)}
    return sorted(filter(has_short_store, fractions))

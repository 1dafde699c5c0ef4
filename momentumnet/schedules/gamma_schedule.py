"""Gamma over the steps of a training: from the value that keeps a function to one whose memory is wanted, or to 0."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.schedules.gamma_setting import set_gamma, streams_that_take
from momentumnet.schedules.step_schedule import StepSchedule, fraction_at, fraction_between


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


class GammaSchedule(StepSchedule):
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

    _name = "gamma"

    def __init__(
        self,
        model: nn.Module,
        optimizer_steps: int,
        start: float | Fraction,
        end: float | Fraction,
        *,
        shape: str = "linear",
    ) -> None:
        super().__init__(model, optimizer_steps, shape)
        self.start, self.end = exact_gamma(start), exact_gamma(end)
        if shape == "geometric" and not (self.start and self.end):
            raise ValueError(
                f"shape 'geometric' multiplies gamma from step to step, so neither end can be 0; got {self.start} and "
                f"{self.end}. Take 'linear' or 'cosine'"
            )
        streams_that_take(model, self.start, self.end)
        self._set_rule()

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
        wanted = fraction_at(self.start, self.end, self._covered(self.start, self.end, step))
        return fraction_between(self.start, self.end, float(wanted))

    def _what_it_is(self) -> dict[str, Any]:
        ends = {"start": str(self.start), "end": str(self.end)}
        return {"optimizer_steps": self.optimizer_steps, **ends, "shape": self.shape}

    def _set_rule(self) -> None:
        set_gamma(self.model, self.gamma)

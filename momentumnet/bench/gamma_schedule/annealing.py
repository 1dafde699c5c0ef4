"""How the rule of a network changes in a fine-tuning of ``bench gamma-schedule``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

from momentumnet.conversion.conversion import convert
from momentumnet.core.rules.dr2net import Dr2Net
from momentumnet.schedules.dr2net_schedule import schedule_dr2net
from momentumnet.schedules.gamma_schedule import schedule_gamma
from momentumnet.schedules.step_schedule import StepSchedule

DR2NET_START = Dr2Net()


@dataclass(frozen=True)
class Annealing(ABC):
    """From the rule that keeps a pretrained network's function to another one, in the first steps of a training.

    Attributes:
        start: Gamma of momentum at the beginning.
        final: Gamma at the end; of Dr2Net, beta.
        length: Share of the training's steps in which the rule changes; at 0 it is the final one from the first step.
        shape: Of the way between, as the schedules take it.
    """

    start: Fraction
    final: Fraction
    length: Fraction
    shape: str = "linear"

    @property
    def is_constant(self) -> bool:
        """Whether it ends where it starts, so that its length changes nothing."""
        return False

    @abstractmethod
    def converted(self, model: nn.Module, example: Tensor) -> nn.Module:
        """A copy of the network, at the final rule."""

    def begun(self, model: nn.Module, steps: int) -> StepSchedule | None:
        """The schedule of a converted network in a training of so many steps; None where it changes at once."""
        return self._schedule(model, max(1, round(self.length * steps))) if self.length else None

    @abstractmethod
    def _schedule(self, model: nn.Module, steps: int) -> StepSchedule:
        """The schedule over so many steps, at its beginning."""


class Momentum(Annealing):
    """Gamma, by `momentumnet.schedule_gamma`."""

    @property
    def is_constant(self) -> bool:
        return self.start == self.final

    def converted(self, model: nn.Module, example: Tensor) -> nn.Module:
        return convert(model, example, gamma=self.final, backward="reversible")

    def _schedule(self, model: nn.Module, steps: int) -> StepSchedule:
        return schedule_gamma(model, steps, self.start, self.final, shape=self.shape)


class Dr2NetCoefficients(Annealing):
    """Alpha and beta, by `momentumnet.schedule_dr2net`, from 1 and 1/64 to 1 - beta and beta.

    At that end values do not grow with depth, and a block takes the bits of momentum at the same gamma. It is never
    the start, whose alpha is 1.
    """

    @property
    def _end(self) -> Dr2Net:
        return Dr2Net(alpha=1 - self.final, beta=self.final)

    def converted(self, model: nn.Module, example: Tensor) -> nn.Module:
        return convert(model, example, coupling=self._end, backward="reversible")

    def _schedule(self, model: nn.Module, steps: int) -> StepSchedule:
        return schedule_dr2net(model, steps, DR2NET_START, self._end, shape=self.shape)


METHODS: dict[str, type[Annealing]] = {"momentum": Momentum, "dr2net": Dr2NetCoefficients}

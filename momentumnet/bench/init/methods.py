"""The ways to begin a training that ``bench init`` compares: an initialisation, and what its first steps are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from momentumnet.bench.trainings.initialisations import Task, fixup, gradinit, metainit
from momentumnet.init import InitReport
from momentumnet.optim import constant, warmup


@dataclass(frozen=True)
class Method:
    """An initialisation of a network whose weights Kaiming's has drawn, and the epoch before the schedule, if any.

    Attributes:
        initialise: Changes the model in place; None for Kaiming's initialisation as it is.
        first: Makes the scheduler of a training with one more epoch, from optimizer, steps of it, and the schedule.
    """

    initialise: Callable[[nn.Module, Task], InitReport] | None = None
    first: Callable[[Optimizer, int, LRScheduler], LRScheduler] | None = None


METHODS = {
    "kaiming": Method(),
    "constant": Method(first=lambda optimizer, steps, after: constant(optimizer, steps, after=after)),
    "warmup": Method(first=lambda optimizer, steps, after: warmup(optimizer, steps, after=after)),
    "metainit": Method(metainit),
    "gradinit": Method(gradinit),
    "fixup": Method(fixup),
}

"""A network whose blocks keep more than their stream's state takes, so that there is something to plan."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.planner.fit import measured_step
from momentumnet.planner.step_plans import MeasuredStep
from tests.models import WIDTH, Chain, ResidualMLP


class Wide(ResidualMLP):
    """Keeps more than the stream's state takes."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 8 * WIDTH)


def chain() -> Chain:
    torch.manual_seed(3)
    return Chain([Wide() for _ in range(6)])


def rows(batch: int = 64) -> Tensor:
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(batch))


def measured(model: nn.Module) -> MeasuredStep:
    return measured_step(model, rows(), gamma=exact_gamma(1 / 8))

"""Parents of residual blocks that call them in a given way."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, ResidualMLP

BACKWARDS = ("stored", "reversible")


class Looped(nn.Module):
    """Residual blocks, called as the given function says."""

    def __init__(self, run: Any, block: type[nn.Module] = ResidualMLP, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block() for _ in range(depth)])
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Parent(Looped):
    """Three of them, with a layer of the parent's own that may stand between."""

    def __init__(self, run: Any) -> None:
        super().__init__(run, depth=3)
        self.glue = nn.Linear(WIDTH, WIDTH)


def converted(model: nn.Module, backward: str = "reversible", gamma: float = 0.5, **options: Any) -> nn.Module:
    return mn.convert(model, streams=["blocks"], gamma=gamma, backward=backward, **options)


def straight(parent: Looped, x: Tensor) -> Tensor:
    for block in parent.blocks:
        x = block(x)
    return x

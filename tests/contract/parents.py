"""A parent of three residual blocks that calls them in a given way."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.models import WIDTH, ResidualMLP


class Parent(nn.Module):
    """Three residual blocks, called as the given function says."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ResidualMLP() for _ in range(3)])
        self.glue = nn.Linear(WIDTH, WIDTH)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def straight(parent: Parent, x: Tensor) -> Tensor:
    for block in parent.blocks:
        x = block(x)
    return x

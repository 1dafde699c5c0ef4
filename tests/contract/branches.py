"""Branches that do something beside their arithmetic, in residual blocks and in a module outside of the stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 16


class Branch(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def branch(self, x: Tensor) -> Tensor:
        y: Tensor = self.leave(torch.tanh(self.enter(x)))
        return y


class Residual(nn.Module):
    """A block of a stream."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


class Network(nn.Module):
    """Three blocks with one kind of branch, and a module of another kind behind them, with a head."""

    def __init__(self, inside: Callable[[], nn.Module], outside: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Residual(inside()) for _ in range(3)))
        self.between, self.head = outside(), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.between(self.blocks(x))))
        return y

"""Blocks that compute something else in a recompute, or could without being seen, and a chain around one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP
from tests.tally import Tally


class Undetermined(ResidualMLP):
    """Draws from a generator that nobody replays."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = Tally([torch.Generator().manual_seed(0)])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.randn(x.shape, generator=self.generators[0])


class Shuffling(ResidualMLP):
    """Permutes its output from a counter: sums over the elements do not change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return super().forward(x).roll(self.calls[0], dims=-1)


class Overwriting(ResidualMLP):
    """Starts with an in-place activation on its input."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(x)
        return x + self.inner(x)


class ZeroScaled(ResidualMLP):
    """A branch that is zero at the start, so that the state cannot tell a changed parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x)


class TwoPaths(ResidualMLP):
    """Takes another path, with the same result, when it is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return x + (self.inner(x) if self.calls[0] % 2 else self.inner(x).clone().tanh().atanh() * 1.0)


def chain_of(middle: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    chain = Chain([ResidualMLP(), middle(), ResidualMLP()])
    return mn.convert(chain, streams=["blocks"])


class ReadingABuffer(ZeroScaled):
    """A zero branch that reads a buffer: the state cannot tell that the buffer was changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * (self.inner(x) * self.mask)


class ZeroNorm(ResidualMLP):
    """Ends its branch in a norm whose weight is zero, as residual networks are initialised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.inner(x))

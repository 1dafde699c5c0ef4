"""A stream, a module behind it, and options by which a conversion computes something else."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.models import WIDTH, ResidualMLP

ROWS = 64


Between = Callable[[Tensor], Tensor]


# Options with which a conversion computes something else.
CONVERSIONS: list[dict[str, object]] = [
    {},
    {"gamma": 0.9},
    {"final_velocity": "drop"},
    {"initial_velocity": "branch"},
    {"arithmetic": "float", "gamma": 0.9},
]


class Behind(nn.Sequential):
    """A composite module that returns another width, so that it is no block of a stream."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 2 * WIDTH), nn.Tanh(), nn.Linear(2 * WIDTH, WIDTH // 2))


class StreamThenModule(nn.Module):
    """A stream, a module behind it, and the stream's output once more at the end if it is asked for."""

    def __init__(self, between: Between = lambda x: x, *, tapped: bool = False) -> None:
        super().__init__()
        self.start = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(*[ResidualMLP() for _ in range(3)])
        self.behind = Behind()
        self.between, self.tapped = between, tapped
        self.returned: weakref.ref[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.blocks(self.start(x))
        self.returned = weakref.ref(x)
        y = self.behind(self.between(x))
        return (y, x) if self.tapped else y


def rows(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))

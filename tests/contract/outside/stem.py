"""A stem whose layers are a chain, in front of a stream, and what the chain frees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import momentumnet as mn

WIDTH = 8
Between = Callable[[Tensor], Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(x))


class Stem(nn.Module):
    """Convolution, norm, activation in place, dropout and pooling as children of the network, then a stream."""

    def __init__(self, between: Between = lambda x: x, dropout: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.act = nn.ReLU(inplace=True)
        self.drop = dropout or nn.Dropout(0.3)
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(*[Block() for _ in range(3)])
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.norm(self.conv(x)))
        x = self.drop(self.act(x))
        return self.blocks(self.pool(x)).mean((2, 3))


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Converted with the rest of the network kept, and recomputed."""
    torch.manual_seed(7)
    model = build().train()
    kept, recomputed = (mn.convert(model, images(), others=others) for others in ("keep", "checkpoint"))
    return kept, recomputed


PIXELS = 2 * WIDTH * 8 * 8
# Bytes: the outputs of convolution and relu, and where pooling found its largest values.
FINGERPRINT = 40  # of what a recompute returns and of what its layers save, two integers each on its device
FREED = 2 * 4 * PIXELS + 8 * PIXELS // 4


def held(net: nn.Module) -> int:
    x = images()
    return mn.measure_memory(lambda: net(x)).saved_bytes

"""A small network in float64, its rule in ordinary operations, and rows for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.models import WIDTH, Chain, ResidualMLP

GAMMA = 0.5


class ByTheRule(Chain):
    """v <- gamma v + (1 - gamma) f(x); x <- x + v; at the end, what the velocity holds back."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.stem(x)
        v = torch.zeros_like(x)
        for block in self.blocks:
            v = GAMMA * v + (1 - GAMMA) * (block(x) - x)
            x = x + v
        return self.head(x + GAMMA / (1 - GAMMA) * v)


def rows(seed: int = 1) -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(kind: type[nn.Module] = ResidualMLP) -> Chain:
    torch.manual_seed(0)
    return Chain([kind() for _ in range(4)]).double()


def reference() -> nn.Module:
    net = network()
    net.__class__ = ByTheRule
    return net

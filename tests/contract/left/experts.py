"""Blocks of an expert each, which leaves its loss on an attribute, and the ways in which they are recomputed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 32


class Expert(nn.Module):
    aux: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.enter(x))
        self.aux = hidden.square().mean()
        return self.leave(hidden)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expert = Expert()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expert(x)


OPTIONS = [
    {"backward": "reversible"},
    {"backward": "checkpointed"},
    {"backward": "reversible", "others": "checkpoint"},
]


def gradients_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Of a step."""
    net.zero_grad()
    net(x).square().mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]

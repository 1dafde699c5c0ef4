"""Blocks of two batch norms, with what they do beside calling them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import momentumnet as mn

WIDTH = 8
Step = Callable[["Block", Tensor], Tensor]


def plainly(block: Block, x: Tensor) -> Tensor:
    return block.second(torch.relu(block.first(x)))


def past_the_module(block: Block, x: Tensor) -> Tensor:
    norm = block.first
    y = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
    return plainly(block, y) + type(norm).forward(norm, y)


class Block(nn.Module):
    def __init__(self, step: Step = plainly) -> None:
        super().__init__()
        self.first, self.second, self.step = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH), step

    def forward(self, x: Tensor) -> Tensor:
        return x + self.step(self, x)


def images() -> Tensor:
    return torch.randn(4, WIDTH, 3, 5, generator=torch.Generator().manual_seed(1)) * 2 + 1


def pair(step: Step = plainly) -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(*[Block(step) for _ in range(3)]).train()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(parameter.numel()))
    stored, reversible = (mn.convert(model, images(), backward=kind) for kind in ("stored", "reversible"))
    return stored, reversible

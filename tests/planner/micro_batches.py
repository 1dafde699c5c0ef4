"""Steps of several batches, whose gradients add up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import ResidualMLP


def weighty() -> tuple[nn.Module, Tensor]:
    """Gradients of parameters are most of what a step takes."""
    torch.manual_seed(0)
    return nn.Sequential(*(ResidualMLP(256) for _ in range(8))), torch.randn(64, 256)


def peak(net: nn.Module, x: Tensor, micro_batches: int) -> int:
    """Of a step from no gradients on, whose gradients are those of so many batches."""

    def step() -> None:
        for _ in range(micro_batches):
            output = net(x)  # held in backward, as in a training loop
            loss(output).backward()

    step()
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(step).peak_bytes


def loss(output: Tensor) -> Tensor:
    return output.square().mean()

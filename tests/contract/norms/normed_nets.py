"""A network with norms, and how often batches are measured in its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import momentumnet as mn
from tests.contract.reference import loss_of, train_step

WIDTH = 20


class Measuring(TorchDispatchMode):
    """Counts how often a batch is measured."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.native_batch_norm.default and args[5]
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """Two norms and a product between them, of any number of dimensions."""

    def __init__(self, build: Callable[[int], nn.Module], *, twice: bool = False) -> None:
        super().__init__()
        self.first = build(WIDTH)
        self.second = self.first if twice else build(WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.first(x)).transpose(1, -1) @ self.weight
        return x + self.second(y.transpose(1, -1).contiguous())


class Net(nn.Module):
    """A stream, and a module with a norm before it."""

    def __init__(self, build: Callable[[int], nn.Module], *, twice: bool = False) -> None:
        super().__init__()
        self.before = nn.Sequential(build(WIDTH), nn.Softplus(), nn.Tanh())
        self.blocks = nn.ModuleList([Block(build, twice=twice) for _ in range(3)])
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for block in self.blocks:
            x = block(x)
        return x


def images(dims: int = 2, seed: int = 1) -> Tensor:
    shape = (6, WIDTH, *(5, 3, 4)[:dims])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def pair(model: nn.Module, x: Tensor, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Converted twice: stored, and recomputed wherever it can be."""
    stored = mn.convert(model, x, backward="stored", **options)
    return stored, mn.convert(model, x, others="checkpoint", **options)


def measured_in_backward(net: nn.Module, x: Tensor) -> int:
    counts = []

    def backward(output: Tensor) -> None:
        with Measuring() as measuring:
            loss_of(output).backward()
        counts.append(measuring.count)

    train_step(net, (x,), backward=backward)
    return counts[0]

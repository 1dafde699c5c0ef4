"""Networks without streams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet
from torchvision.models.googlenet import Inception

from momentumnet.memory import measure_memory
from tests.models import WIDTH, ResidualMLP


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 16, 16)


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(8):
        layers += [nn.Conv2d(8 if place else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers)


def densenet() -> nn.Module:
    return DenseNet(4, (4, 4), num_init_features=8, num_classes=4, drop_rate=0.1)


def googlenet() -> nn.Module:
    return nn.Sequential(nn.Sequential(*[Inception(8 if place else 3, 2, 2, 2, 2, 2, 2) for place in range(6)]))


class Added(nn.Module):
    """Residual blocks, behind each of which the parent adds something, as YOLOS does: each stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ResidualMLP(WIDTH, 6 * WIDTH) for _ in range(8)])
        self.added = nn.Parameter(torch.randn(8, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for block, added in zip(self.blocks, self.added, strict=True):
            x = block(x) + added
        return x


class Shifting(nn.Module):
    """Overwrites its argument, as a module may that adds positions."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.inner = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.GELU(), nn.Linear(8 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x += self.shift
        return self.inner(x)


def shifting() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), Shifting())])


class Lstms(nn.Module):
    """Its layers have no children."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return x


class Raw(nn.Module):
    """Nor has this one, which computes with its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Parameter(torch.randn(WIDTH, 8 * WIDTH) / 4)
        self.leave = nn.Parameter(torch.randn(8 * WIDTH, WIDTH) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ self.enter) @ self.leave


def raw() -> nn.Module:
    return nn.Sequential(*[Raw() for _ in range(6)])


def peak_of(call: Callable[[], Tensor], model: nn.Module) -> int:
    def step() -> None:
        call().square().mean().backward()

    step()
    model.zero_grad(set_to_none=True)
    return measure_memory(step).peak_bytes

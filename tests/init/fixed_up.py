"""A small ResNet for Fixup."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from momentumnet.init import InitReport, fixup_

IMAGES = (2, 3, 32, 32)


class SmallResNet(ResNet):
    """A torchvision ResNet with an eighth of the channels."""

    def __init__(self, block: type[nn.Module], layers: list[int]) -> None:
        super().__init__(block, layers, num_classes=5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                inputs = 3 if module.in_channels == 3 else module.in_channels // 8
                module.__init__(inputs, module.out_channels // 8, module.kernel_size, module.stride, module.padding,
                                bias=False)  # fmt: skip
            elif isinstance(module, nn.BatchNorm2d):
                module.__init__(module.num_features // 8)
        self.fc = nn.Linear(self.fc.in_features // 8, 5)


def resnet(block: type[nn.Module] = BasicBlock, layers: tuple[int, ...] = (2, 2, 1, 1)) -> SmallResNet:
    torch.manual_seed(0)
    return SmallResNet(block, list(layers))


def images() -> Tensor:
    return torch.randn(*IMAGES, generator=torch.Generator().manual_seed(1))


def fixed(model: nn.Module, example: object = None) -> InitReport:
    generator = torch.Generator().manual_seed(5)
    example = images() if example is None else example
    return fixup_(model, example, remove_normalization=True, generator=generator)


def expected_draws(model: nn.Module, factor_of: dict[str, float], mode: str = "fan_out") -> dict[str, Tensor]:
    """He's draws in the model's order, times the factor of the weight's own name, else of its name within a block."""
    generator = torch.Generator().manual_seed(5)
    draws = {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        factor = factor_of.get(name, factor_of.get(name.split(".", 2)[-1], 1.0))
        fan = (weight.shape[0] if mode == "fan_out" else weight.shape[1]) * weight[0, 0].numel()
        draws[name] = torch.zeros_like(weight)
        if factor:
            draws[name].normal_(0, math.sqrt(2 / fan), generator=generator).mul_(factor)
    return draws


class Residual(nn.Module):
    """A residual block of one-dimensional convolutions, with a gate on the branch and pre-activation."""

    def __init__(self, *, single: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.ReLU(inplace=True)
        self.first = nn.Identity() if single else nn.Conv1d(4, 4, 3, padding=1)
        self.second = nn.Conv1d(4, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(torch.relu(self.first(self.act(self.norm(x)))))
        return x + branch * self.gate(branch.mean(-1)).sigmoid()[..., None]

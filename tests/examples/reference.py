"""The momentum rule on a CIFAR ResNet, written without the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from momentumnet.bench.networks.cifar_networks import STAGES, CifarResNet


def plain_momentum(net: CifarResNet, images: Tensor, gamma: float, final_velocity: str) -> Tensor:
    """The momentum rule in plain floats, over the blocks of each stage that keep the shape; without the package."""
    x = F.relu(net.bn1(net.conv1(images)))
    for stage in STAGES:
        v = torch.zeros(())
        for block in net.get_submodule(stage):
            y = block(x)
            if y.shape != x.shape:
                x = y
                continue
            v = gamma * v + (1 - gamma) * (y - x)
            x = x + v
        if final_velocity == "flush":
            x = x + gamma / (1 - gamma) * v
    return net.linear(x.mean((2, 3)))
